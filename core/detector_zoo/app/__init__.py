"""The web page and the HTTP interface of `zoo app`; importing this package loads neither torch nor a web framework.

`options.Options` says how to serve, `analysis.Analyst` does the work without any web framework, `server` puts the
HTTP interface (`api`), the limits (`limits`, `guard`) and the page (`page`) together.
"""
