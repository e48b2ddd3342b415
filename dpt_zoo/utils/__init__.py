"""Files, images, progress bars, the environment and Markdown: what every other package may use."""
