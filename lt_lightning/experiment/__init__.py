"""A job from its configuration to its results.

    sweep        a multirun of Hydra: many jobs, aggregated over seeds at its end (`sweep.py`)
      job        one configuration with one seed; its list of tasks is made once (`run/job.py`)
        task     a search; the retraining of one ticket; a control of it (`run/run_task.py`)
          training   one fit of Lightning (`fit_rounds` and `fit_ticket` in `run/run_task.py`)
            round    prune, rewind, train; round 0 is dense (`training/callback.py`)

`run/run_job.py` reads as the experiment, from the job to its results. `config/` says what a configuration asks for and
where its results lie, `parts.py` builds the network, the data and all else that trainings need, and `protocols/` holds
what a job may do besides its search and its retrainings.
"""
