"""From a link to a stored, verified video: download, MP4 inspection, and the records of what a task brought."""
