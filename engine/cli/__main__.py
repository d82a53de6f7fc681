"""``python -m medclipsam.engine.cli``: the command line where there is no console script."""

from medclipsam.engine.cli.main import main

if __name__ == "__main__":
    main()
