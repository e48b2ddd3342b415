"""Text from outside (file names, class names, server messages), made safe to show."""


def printable(text: str) -> str:
    """Escape every character that a terminal cannot show in one line, such as control characters."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
