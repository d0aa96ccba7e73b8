"""The kernel's interfaces, one function a system call, under their man-page names.

Nothing here knows about CSI, pools or volumes, keeps state, or logs. Every failure is an `OSError`
with its errno and the path it concerns, or a `ProgramError` where a program had to be run.
"""
