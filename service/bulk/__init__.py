"""Bulk scoring, `python -m service.bulk IN OUT`: a row for each image of a folder, a list or a Parquet file; no server.

IN   ->  images, in order  ->  batches  ->  a process a core: read, decode, predict  ->  rows, in order  ->  OUT
OUT      bulk.json   what is scored, by which model; another job is refused
         part-000000.csv, part-000001.csv, ...   each whole or not there, so that a job that was killed goes on
"""
