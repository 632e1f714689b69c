"""`report.html`: a result in one file for the browser, opened by double-click and without a network.

    document   what the page says in words and numbers: views, pairs, settings, times, warnings
    points     the scene as points, thinned to a budget and packed
    pictures   small pictures of every photo, its depth and its confidence
    page       one HTML file of all that, and of `assets/`: the page, its style, its scripts and three.js

`mast3r-sfm view` serves the same page with all points and large pictures (`app.viewer`).
"""

from mast3r_sfm.export.report.writing import MAX_BYTES, write_report

__all__ = ["MAX_BYTES", "write_report"]
