"""The kernel's interfaces, one function per system call, under their man-page names.

Nothing here knows about CSI, pools or volumes, keeps state, or logs. Every failure is an `OSError`
with its errno and the path concerned, or a `ProgramError` if a program had to be run.
"""
