"""MMEngine, as this project uses it: configs, the Runner, distributed processes."""
