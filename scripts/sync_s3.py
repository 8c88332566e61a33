"""The door to `nexa sync`: pull and push between s3://, file:// and folders.

python scripts/sync_s3.py s3://bucket/raw data/raw --dry-run
"""

from nexa_core.command import enter

if __name__ == "__main__":
    enter("sync")
