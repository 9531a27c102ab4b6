"""Reading and writing of files by blocks, inside tasks, and the file-to-file job.

Imports `core`. `video` and `watch` are the sources of streams that users call as ``dx.io.video``.
"""

from dask_onnx.io.video_files import video
from dask_onnx.io.watched_folder import watch

__all__ = ["video", "watch"]
