"""`python -m mast3r_sfm` is the command `mast3r-sfm`."""

from mast3r_sfm.app.cli import main

if __name__ == "__main__":
    main()
