"""Pictures and volumes in tiles, equal to the whole; sliced detection. Built on `Model`."""
