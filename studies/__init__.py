"""The paper's claims as studies: gin files, sweeps of paired seeds, results as data, and what follows from them.

Data flows one way: runs (`python -m studies NAME`) are read into `results/NAME.json` (`records`), claims (`claims`,
`paper`) measure what is in it for each seed, `intervals` says what the seeds say together, and `tables` and `pictures`
show that. Nothing behind the results looks at a run.
"""
