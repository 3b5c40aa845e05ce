"""The same jobs as an Apache Beam pipeline: local, or on Dataflow, Flink, Spark by its options."""

from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.runners import Job, Work, do_job


class DoJobs(beam.DoFn):
    """Prepares once for each worker thread, then does the jobs that come."""

    def __init__(self, prepare: Callable[[], Work]):
        self.prepare = prepare

    def setup(self):
        self.work = self.prepare()

    def process(self, job: Job):
        do_job(self.work, job)


def run_pipeline(prepare: Callable[[], Work], jobs: Sequence[Job], arguments: Sequence[str]):
    """Does all jobs; `arguments` are options such as --runner=DataflowRunner."""
    with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
        created = pipeline | "jobs" >> beam.Create(list(jobs))
        created | "spread" >> beam.Reshuffle() | "work" >> beam.ParDo(DoJobs(prepare))
