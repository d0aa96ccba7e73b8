"""The commands that use volumes on a machine without an orchestrator.

They make the same CSI calls as an orchestrator: to the driver that runs, or to one that is started
for the one command. So they are as safe as those calls, and can be repeated like them.
"""
