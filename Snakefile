# Paths and resources only; what is run and drawn is declared in configs/, and every command is one of `cpt-repro`.
#   snakemake --cores all figures/                                  the whole replication at the scale smoke
#   snakemake --cores all figures/ --config scale=pocket            on real text
#   snakemake --cores all figures/smoke/ibrahim2024/figure_05.png   one exhibit and what it needs
#   snakemake --profile profiles/slurm figures/ --config scale=paper    on a cluster (docs/clusters.md)
import os
import sys

from cpt_repro.errors import UserError
from cpt_repro.files import writing
from cpt_repro.workflow.jobs import FIGURE_FILES, TABLE_FILES, Workflow

# `cpt-repro` of the environment that runs snakemake, also where that is not activated.
os.environ["PATH"] = os.pathsep.join(
    [os.path.dirname(sys.executable), os.environ["PATH"]]
)
SCALE = config.get("scale", "smoke")
try:
    with writing():
        work = Workflow(SCALE)
        work.mend_times()
        TRAINING, EVALUATING = work.training(), work.evaluating()
except UserError as error:
    sys.exit(f"cpt-repro: {error}")


# Begins a run, not a dry run or a job of one. Snakemake's own lock outlives a killed run and is off (profiles/default).
onstart:
    try:
        work.begin()
    except UserError as error:
        sys.exit(f"cpt-repro: {error}")


# On a cluster these run where snakemake does: they take seconds, or a network.
localrules:
    tokenizer,
    suites,
    figure,
    table,
    claims,
    report,


wildcard_constraints:
    corpus="|".join(work.plan.scale.corpora),
    number=r"\d\d",
    paper="|".join(work.plan.papers),


rule:
    name:
        "figures/"
    input:
        work.all_files(),


rule tokenizer:
    input:
        work.tokenizer_request(),
    output:
        f"{work.data}/tokenizer/tokenizer.json",
    log:
        f"logs/{SCALE}/tokenizer.log",
    retries: 0
    shell:
        "cpt-repro corpus tokenizer --scale {SCALE} > {log} 2>&1"


rule corpus:
    input:
        f"{work.data}/tokenizer/tokenizer.json",
        lambda wildcards: work.corpus_request(wildcards.corpus),
    output:
        f"{work.data}/{{corpus}}/fingerprint.json",
    log:
        f"logs/{SCALE}/corpus-{{corpus}}.log",
    threads: lambda wildcards: work.corpus_threads(wildcards.corpus)
    shell:
        "cpt-repro corpus {wildcards.corpus} --scale {SCALE} --processes {threads} > {log} 2>&1"


for name in work.recording():

    rule:
        name:
            f"record_{name}"
        input:
            work.fingerprint(name),
        output:
            work.corpus_record(name),
        localrule: True
        shell:
            "cp {input} {output}.aside && mv {output}.aside {output}"


rule suites:
    input:
        work.suites_inputs(),
    output:
        f"{work.data}/suites/fingerprint.json",
    log:
        f"logs/{SCALE}/suites.log",
    retries: 0
    shell:
        "cpt-repro suites --scale {SCALE} > {log} 2>&1"


# One rule per process that still has something to train (evaluate): its outputs are the receipts that are missing.
for job in TRAINING:

    rule:
        name:
            f"train_{job.name}"
        input:
            job.inputs,
        output:
            job.outputs,
        log:
            f"logs/{SCALE}/train-{job.name}.log",
        threads: job.cores
        resources:
            **job.resources,
            attempt=lambda wildcards, attempt: attempt,
        params:
            bundle=job.name,
        message:
            f"training {len(job.outputs)} segments: {job.name}"
        shell:
            "cpt-repro train {params.bundle} --scale {SCALE} --attempt {resources.attempt} 2>&1 | tee {log}"


for job in EVALUATING:

    rule:
        name:
            f"evaluate_{job.name}"
        input:
            job.inputs,
        output:
            job.outputs,
        log:
            f"logs/{SCALE}/evaluate-{job.name}.log",
        threads: job.cores
        resources:
            **job.resources,
        params:
            group=job.name,
        message:
            f"evaluating {len(job.outputs)} models"
        shell:
            "cpt-repro evaluate {params.group} --scale {SCALE} 2>&1 | tee {log}"


rule figure:
    input:
        lambda wildcards: work.exhibit_inputs(
            wildcards.paper, f"figure_{wildcards.number}"
        ),
    output:
        multiext(
            f"figures/{SCALE}/{{paper}}/figure_{{number}}",
            *[f".{suffix}" for suffix in FIGURE_FILES],
        ),
    log:
        f"logs/{SCALE}/{{paper}}-figure_{{number}}.log",
    retries: 0
    shell:
        "cpt-repro draw {wildcards.paper}/figure_{wildcards.number} --scale {SCALE} > {log} 2>&1"


rule table:
    input:
        lambda wildcards: work.exhibit_inputs(
            wildcards.paper, f"table_{wildcards.number}"
        ),
    output:
        multiext(
            f"figures/{SCALE}/{{paper}}/table_{{number}}",
            *[f".{suffix}" for suffix in TABLE_FILES],
        ),
    log:
        f"logs/{SCALE}/{{paper}}-table_{{number}}.log",
    retries: 0
    shell:
        "cpt-repro draw {wildcards.paper}/table_{wildcards.number} --scale {SCALE} > {log} 2>&1"


rule claims:
    input:
        work.records(),
        work.analysis(),
    output:
        work.ledger_files(),
    log:
        f"logs/{SCALE}/claims.log",
    retries: 0
    shell:
        "cpt-repro claims --write --scale {SCALE} > {log} 2>&1"


rule report:
    input:
        work.exhibit_sidecars(),
        work.ledger_files(),
        work.records(),
    output:
        work.report_files(),
    log:
        f"logs/{SCALE}/report.log",
    retries: 0
    shell:
        "cpt-repro report --scale {SCALE} > {log} 2>&1"
