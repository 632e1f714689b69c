"""`mast3r-sfm serve`: reconstructions by a page and a REST API, with a model that stays loaded (docs/serve.md).

    server   binds the address, loads the model, runs until Ctrl-C
    guard    who may ask: Host, Origin, token; what browsers may do with the answers
    api      the routes
    uploads  from a request to files that are photos
    options  what a client may ask of a reconstruction
    jobs     the reconstructions, each a folder; which is next
    worker   the one thread that reconstructs
    page     the files of the page

Nothing of it is imported unless the command runs; it needs the extra `serve`.
"""
