"""`pycsi doctor`: what is wrong with pools, with the machine and with the cluster's objects.

    examination    looks at every pool, and again at what was found; what hangs keeps nobody waiting
     └ refusals, records, faults, leftovers, crashes, room, machine, cluster    a kind of check each
        └ look, commands    one look at a pool, and the commands that mend what is found there
    mending        mends what is safe to mend
    report         what is printed

Nothing is changed unless that is asked for. While a driver serves a pool, what it may just be doing
is no finding: everything is looked at three times, and what only time tells has to be old.
"""
