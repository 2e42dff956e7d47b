"""`python -m maskline`: the command `maskline`."""

from maskline.console.main import main

main()
