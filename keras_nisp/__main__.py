"""`python -m keras_nisp` is `keras-nisp`."""

from keras_nisp_cli.main import main

if __name__ == "__main__":
    main()
