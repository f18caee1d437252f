"""Entry points, one module a job: parse, build, run, print."""
