# Paths and resources only; what is run and drawn is declared in configs/, and every command is one of `cpt-repro`.
#   snakemake --cores all figures/                                  the whole replication at the scale smoke
#   snakemake --cores all figures/ --config scale=pocket            on real text
#   snakemake --cores all figures/pocket/ibrahim2024/figure_05.png  one exhibit and what it needs, at its scale
#   snakemake --profile profiles/slurm figures/ --config scale=paper    on a cluster (docs/clusters.md)
from cpt_repro.workflow.call import Call
from cpt_repro.workflow.jobs import FIGURE_FILES, RESOURCES, TABLE_FILES, WARM, WEIGHTS

call = Call(config)

if call.stand_in:

    # A read-only folder may be looked at, with -n.
    workdir: call.stand_in


AT = "--scale {wildcards.scale}" + call.options


# Begins a run, not a dry run or a job of one. Snakemake's own lock outlives a killed run and is off (profiles/default).
onstart:
    call.begin(local=workflow.local_exec)


onsuccess:
    call.end()


# On a cluster these run where snakemake does: they take seconds, or a network.
localrules:
    tokenizer,
    suites,
    record,
    figure,
    table,
    claims,
    report,


wildcard_constraints:
    scale="[^/]+",
    paper="[^/]+",
    corpus=r"(?!suites/)[^/]+",


rule:
    name:
        "figures/"
    input:
        call.ask("everything"),


def made(*names):
    """Files beside the exhibits of a scale."""
    return [update(f"figures/{{scale}}/{name}") for name in names]


# What a scale has one of: its command, and its files.
OF_SCALE = {
    "tokenizer": ("corpus tokenizer", ["data/{scale}/tokenizer/tokenizer.json"]),
    "suites": ("suites", ["data/{scale}/suites/fingerprint.json"]),
    "claims": ("claims --write", made("claims.json", "claims.md", "values.csv")),
    "report": ("report", made("index.html", "index.json")),
}

for title, (command, files) in OF_SCALE.items():

    rule:
        name:
            title
        input:
            call.ask(title),
        output:
            files,
        log:
            f"logs/{{scale}}/{title}.log",
        retries: 0
        params:
            command=command,
        shell:
            WARM + " {params.command} " + AT + " > {log} 2>&1"


rule corpus:
    input:
        call.ask("corpus", "corpus"),
    output:
        "data/{scale}/{corpus}/fingerprint.json",
    log:
        "logs/{scale}/corpus-{corpus}.log",
    threads: call.ask("corpus_threads", "corpus")
    shell:
        WARM
        + " corpus {wildcards.corpus} "
        + AT
        + " --processes {threads} > {log} 2>&1"


rule record:
    input:
        call.ask("record", "corpus"),
    output:
        "results/{scale}/corpora/{corpus}.json",
    shell:
        # Not through a link that somebody put there.
        "rm -f {output}.aside && set -C && cat {input[0]} > {output}.aside && mv {output}.aside {output}"


# What `update` marks is left where it is until the command has something better.
rule train:
    input:
        call.ask("training", "run"),
    output:
        update("results/{scale}/runs/{run}/receipt.json"),
    log:
        "logs/{scale}/train/{run}.log",
    threads: call.ask("training_resources", "run", part="cpus_per_task")
    resources:
        **{part: call.ask("training_resources", "run", part=part) for part in RESOURCES},
        attempt=lambda wildcards, attempt: attempt,
    params:
        job=call.ask("job", "run"),
        again="",
    message:
        "training {wildcards.run} ({wildcards.scale})"
    shell:
        "{params.job[0]} train {params.job[1]} {params.again} "
        + AT
        + " --attempt {resources.attempt} 2>&1 | tee {log}"


# A training that has a receipt, and whose weights are gone and needed.
use rule train as weights with:
    input:
        call.ask("training_again", "run"),
    output:
        temp(touch(f"{WEIGHTS}/{{scale}}/{{run}}/{{gone}}")),
    log:
        "logs/{scale}/weights/{run}/{gone}.log",
    params:
        job=call.ask("job", "run"),
        again="--again",


rule evaluate:
    input:
        call.ask("evaluating", "run"),
    output:
        update("results/{scale}/runs/{run}/evaluation.json"),
    log:
        "logs/{scale}/evaluate/{run}.log",
    threads: call.ask("evaluation_resources", "run", part="cpus_per_task")
    resources:
        **{
            part: call.ask("evaluation_resources", "run", part=part)
            for part in RESOURCES
        },
    params:
        job=call.ask("job", "run"),
        verb="evaluate",
    message:
        "{params.verb} {wildcards.run} ({wildcards.scale})"
    shell:
        "{params.job[0]} {params.verb} {params.job[1]} " + AT + " 2>&1 | tee {log}"


# Losses of weights that are kept.
use rule evaluate as measure with:
    input:
        call.ask("measuring", "run"),
    output:
        update("results/{scale}/runs/{run}/losses.json"),
    log:
        "logs/{scale}/measure/{run}.log",
    params:
        job=call.ask("job", "run"),
        verb="measure",


rule figure:
    input:
        call.ask("exhibit", "paper", "exhibit"),
    output:
        [
            update(rf"figures/{{scale}}/{{paper}}/{{exhibit,figure_\d\d}}.{suffix}")
            for suffix in FIGURE_FILES
        ],
    log:
        "logs/{scale}/{paper}-{exhibit}.log",
    retries: 0
    shell:
        WARM + " draw {wildcards.paper}/{wildcards.exhibit} " + AT + " > {log} 2>&1"


use rule figure as table with:
    output:
        [
            update(rf"figures/{{scale}}/{{paper}}/{{exhibit,table_\d\d}}.{suffix}")
            for suffix in TABLE_FILES
        ],
