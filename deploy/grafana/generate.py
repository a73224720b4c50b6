"""Writes the dashboards: `python deploy/grafana/generate.py [DIRECTORY]`."""

import json
import sys
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from panels import SOURCE, Panel, Query, age, band, dashboard, lines, number, on_off, stacked, variable, words

REWARD = variable("reward", "label_values(bonbon_win_rate, reward)")
INSTANCE = variable("instance", 'label_values(up{job="bonbon"}, instance)')
BASE, BEST = 'opponent!~"best-of-.*"', 'opponent=~"best-of-.*"'
SWAPS = {
    "name": "Swaps",
    "datasource": SOURCE,
    "enable": True,
    "iconColor": "purple",
    "expr": '(count by (model_version) (bonbon_alias_info{alias="champion"})) '
    'unless (count by (model_version) (bonbon_alias_info{alias="champion"} offset 1m))',
    "titleFormat": "champion: {{model_version}}",
    "step": "15s",
}
LATENCY = 'bonbon_request_duration_seconds_bucket{route=~"/v1/((chat/)?completions|responses)", instance=~"$instance"}'
TTFT = 'bonbon_time_to_first_token_seconds_bucket{instance=~"$instance"}'


def live(bound: str, opponent: str) -> str:
    """By the reward that says least of a champion, where several rewards judge it."""
    return f'min by (champion) (bonbon:win_rate:{bound}{{{opponent}, reward=~"$reward"}})'


def of_champion(query: str, label: str) -> str:
    """What `query` says of the champion alone; its label `label` names versions."""
    return f"{query} and on ({label}) bonbon:champion:info"


def live_band(title: str, opponent: str, *others: Query, description: str) -> Panel:
    return band(
        title,
        Query(f"min({of_champion(live('low', opponent), 'champion')})", "low"),
        Query(f"max({of_champion(live('high', opponent), 'champion')})", "high"),
        Query(of_champion(live("value", opponent), "champion"), "{{champion}}"),
        *others,
        width=12,
        description=description,
    )


def quantile(share: float, buckets: str, by: str = "") -> str:
    return f"histogram_quantile({share}, sum by (le{by}) (rate({buckets}[$__rate_interval])))"


def evaluated(metric: str, bound: str, *, opponent: str = "") -> str:
    labels = f', opponent="{opponent}"' if opponent else ""
    return f'max by (model_version) ({metric}{{bound="{bound}"{labels}}})'


def columns(*titles: str) -> list[dict[str, Any]]:
    """A table of one row a series, its queries under these titles in their order."""
    renamed = {f"Value #{letter}": title for letter, title in zip(ascii_uppercase, titles, strict=False)}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": renamed}},
    ]


# 3 while best-of-n answers itself. Else 2 while the band reaches 1/2, where the champion wins as often as best-of-n,
# 1 while it only reaches the floor, and 0 below.
AS_GOOD = (
    "max(bonbon_best_of_n) * 3 > 0 or "
    f"max(({of_champion(live('high', BEST), 'champion')}) >= bool 0.5) + "
    f"max(({of_champion(live('high', BEST), 'champion')}) >= bool scalar(max(bonbon_win_rate_floor)))"
)
SAVED = f"max({of_champion('bonbon_champion_saved_ratio', 'model_version')}) or max(bonbon_best_of_n) * 0"
MISSION = [
    number(
        "As good as best-of-n?",
        Query(AS_GOOD),
        no_value="not compared yet",
        mappings=words(
            _0=("no", "red"), _1=("a little worse", "orange"), _2=("yes", "green"), _3=("best-of-n answers", "blue")
        ),
        options={"colorMode": "background"},
        width=6,
        description="What audits say of the champion's answers, with 95 % confidence: yes, unless best-of-n is known "
        'to win more often. "A little worse" is above the floor, service.win_rate_floor.',
    ),
    number(
        "What do I save? Tokens, of best-of-n's",
        Query(SAVED),
        unit="percentunit",
        no_value="nothing yet",
        width=6,
        description="The share of best-of-n's tokens that the champion has not drawn since it first answered; audits "
        "are counted as drawn.",
    ),
]

WIN_RATE = [
    *MISSION,
    number(
        "Win rate against best-of-n",
        Query(f"max({of_champion(live('value', BEST), 'champion')})"),
        unit="percentunit",
        decimals=1,
        no_value="not compared yet",
        description="Best-of-n itself would win half.",
    ),
    number("Draws per answer", Query("max(bonbon_k)"), decimals=0),
    number(
        "Tokens saved since promotion",
        Query(f"max({of_champion('bonbon_champion_saved_tokens', 'model_version')}) or max(bonbon_best_of_n) * 0"),
        unit="short",
        no_value="none yet",
    ),
    number(
        "Fallback",
        Query("max(bonbon_fallen_back) * 2 > 0 or max(bonbon_champion_k_raised)"),
        mappings=words(_0=("holds", "green"), _1=("more draws", "orange"), _2=("best-of-n", "red")),
    ),
    number(
        "Share of best-of-n's gain recovered",
        Query(f"max({of_champion(evaluated('bonbon_evaluation_recovered_ratio', 'value'), 'model_version')})"),
        unit="percentunit",
        no_value="not measured",
    ),
    live_band(
        "Live win rate against one draw of the base",
        BASE,
        Query("max(bonbon_n) / (max(bonbon_n) + 1)", "best-of-n, in theory"),
        description="With the 95 % band that holds however often one looks.",
    ),
    live_band(
        "Live win rate against best-of-n of the base",
        BEST,
        Query("max(bonbon_win_rate_floor)", "floor"),
        description="Best-of-n itself would win half of these. Under the floor the champion answers with more draws.",
    ),
    stacked(
        "Comparisons",
        Query(
            f'sum by (outcome) (increase(bonbon_comparisons_total{{{BASE}, reward=~"$reward"}}[$__rate_interval]))',
            "{{outcome}}",
        ),
    ),
    Panel(
        "Win rate against KL",
        "xychart",
        [
            Query("max by (kl_nats) (bonbon_frontier_win_rate)"),
            Query(
                'count_values by (model_version) ("kl_nats", '  # 1, with the KL as a label
                f"{evaluated('bonbon_evaluation_kl_nats', 'value')}) * on (model_version) group_left () "
                f"{evaluated('bonbon_evaluation_win_rate', 'value', opponent='base')}"
            ),
        ],
        unit="percentunit",
        instant=True,
        description="The best that any policy could do at each KL from the base, and every evaluated version.",
        transformations=[
            {
                "id": "convertFieldType",
                "options": {"conversions": [{"targetField": "kl_nats", "destinationType": "number"}]},
            }
        ],
        options={
            "mapping": "manual",
            "series": [
                {
                    "frame": {"matcher": {"id": "byIndex", "options": index}},
                    "name": {"fixed": name},
                    "x": {"matcher": {"id": "byName", "options": "kl_nats"}},
                    "y": {"matcher": {"id": "byRegexp", "options": "/^Value/"}},
                }
                for index, name in enumerate(("frontier", "versions"))
            ],
        },
    ),
    lines(
        "Tokens per answer since promotion",
        Query(
            "max by (answers_with) (bonbon_champion_tokens_per_answer)",
            "{{answers_with}}",
        ),
        minimum=0,
        description="What the champion's answers take, audits included, and what best-of-n of the base would.",
    ),
    lines(
        "Tokens drawn per answer",
        Query("bonbon:tokens_per_answer:ratio5m", "{{model_version}}, asked by {{asked}}"),
        minimum=0,
        description="Before and after distillation: n draws, then k.",
    ),
    lines(
        "What best-of-n gains over one draw, in reward",
        Query(
            'sum by (reward) (rate(bonbon_reward_best_minus_first_sum{reward=~"$reward"}[$__rate_interval])) / '
            'sum by (reward) (rate(bonbon_reward_best_minus_first_count{reward=~"$reward"}[$__rate_interval]))',
            "{{reward}}",
        ),
        description="Mean of best minus first, of the answers that were ranked.",
    ),
    Panel(
        "Evaluated win rate against the base",
        "bargauge",
        [Query(evaluated("bonbon_evaluation_win_rate", "value", opponent="base"), "{{model_version}}")],
        unit="percentunit",
        instant=True,
        minimum=0,
        maximum=1,
        options={"orientation": "horizontal", "reduceOptions": {"calcs": ["lastNotNull"]}},
    ),
    Panel(
        "Share of best-of-n's gain recovered",
        "bargauge",
        [Query(evaluated("bonbon_evaluation_recovered_ratio", "value"), "{{model_version}}")],
        unit="percentunit",
        instant=True,
        minimum=0,
        options={"orientation": "horizontal", "reduceOptions": {"calcs": ["lastNotNull"]}},
    ),
]

SERVICE = [
    number("Requests a second", Query("bonbon:requests:rate5m"), unit="reqps"),
    number("Errors, last 5 minutes", Query("bonbon:request_errors:ratio5m"), unit="percentunit"),
    number("95th percentile", Query("bonbon:request_duration_seconds:p95_5m"), unit="s"),
    number("Degraded answers", Query("bonbon:degraded:ratio5m"), unit="percentunit"),
    number("Gateways", Query('sum(up{job="bonbon"})')),
    number("Database", Query("min(bonbon_database_up)"), mappings=on_off("answers", "away")),
    stacked(
        "Requests by status",
        Query('sum by (status) (rate(bonbon_requests_total{instance=~"$instance"}[$__rate_interval]))', "{{status}}"),
        unit="reqps",
    ),
    lines(
        "Request to last byte",
        *(Query(quantile(share, LATENCY), f"p{share * 100:.0f}") for share in (0.5, 0.95, 0.99)),
        unit="s",
    ),
    lines(
        "Time to first token of streams",
        *(Query(quantile(share, TTFT, ", asked"), f"p{share * 100:.0f}, {{{{asked}}}}") for share in (0.5, 0.95)),
        unit="s",
    ),
    stacked(
        "Answers by version",
        Query(
            'sum by (model_version) (rate(bonbon_answers_total{instance=~"$instance"}[$__rate_interval]))',
            "{{model_version}}",
        ),
        unit="reqps",
    ),
    lines(
        "Tokens a second",
        Query('sum(rate(bonbon_tokens_drawn_total{instance=~"$instance"}[$__rate_interval]))', "drawn"),
        Query('sum(rate(bonbon_tokens_returned_total{instance=~"$instance"}[$__rate_interval]))', "returned"),
    ),
    lines(
        "Candidates drawn per answer",
        Query(
            'sum by (asked) (rate(bonbon_candidates_drawn_sum{instance=~"$instance"}[$__rate_interval])) / '
            'sum by (asked) (rate(bonbon_candidates_drawn_count{instance=~"$instance"}[$__rate_interval]))',
            "{{asked}}",
        ),
    ),
    lines(
        "Waiting and in flight",
        Query('sum(bonbon_requests_waiting{instance=~"$instance"})', "requests waiting"),
        Query('sum(bonbon_answers_in_flight{instance=~"$instance"})', "answers in flight"),
        Query('sum(bonbon_audits_waiting{instance=~"$instance"})', "audits waiting"),
        Query('sum(bonbon_pair_log_waiting{instance=~"$instance"})', "groups waiting"),
    ),
    lines(
        "Tokens that may be drawn",
        Query('sum by (instance) (bonbon_tokens_in_flight{instance=~"$instance"})', "{{instance}}"),
    ),
    stacked(
        "Degraded answers and audits not made",
        Query('sum(increase(bonbon_degraded_total{instance=~"$instance"}[$__rate_interval])) or vector(0)', "degraded"),
        Query(
            'sum(increase(bonbon_audits_dropped_total{instance=~"$instance"}[$__rate_interval])) or vector(0)', "audits"
        ),
    ),
    stacked(
        "Swaps",
        Query(
            'sum by (outcome) (increase(bonbon_swaps_total{instance=~"$instance"}[$__rate_interval]))', "{{outcome}}"
        ),
        Query("sum(increase(bonbon_fallbacks_total[$__rate_interval]))", "fallen back to best-of-n"),
    ),
    lines(
        "Mean duration of swaps and pauses",
        Query("sum(bonbon_swap_duration_seconds_sum) / sum(bonbon_swap_duration_seconds_count)", "swap"),
        Query("sum(bonbon_pause_duration_seconds_sum)", "requests held back, in all"),
        unit="s",
    ),
    lines(
        "Versions",
        Query('sum(bonbon_versions_loaded{instance=~"$instance"})', "loaded"),
        Query('sum(bonbon_versions_draining{instance=~"$instance"})', "draining"),
        Query('sum(bonbon_versions_refused{instance=~"$instance"})', "refused"),
    ),
    lines(
        "Memory",
        Query('process_resident_memory_bytes{instance=~"$instance", job="bonbon"}', "{{instance}}"),
        unit="bytes",
    ),
    lines(
        "CPU",
        Query('rate(process_cpu_seconds_total{instance=~"$instance", job="bonbon"}[$__rate_interval])', "{{instance}}"),
    ),
    Panel(
        "Aliases",
        "table",
        [Query("max by (alias, model_version) (bonbon_alias_info)"), Query("max by (version) (bonbon_build_info)")],
        instant=True,
    ),
]

PAIRS = [
    number("Clean groups, last hour", Query('sum(increase(bonbon_groups_logged_total{unclean=""}[1h]))'), decimals=0),
    number(
        "Clean share",
        Query('sum(bonbon_groups_logged_total{unclean=""}) / sum(bonbon_groups_logged_total)'),
        unit="percentunit",
    ),
    number("Spool", Query("sum(bonbon_spool_bytes)"), unit="bytes"),
    number("Rounds without success, in a row", Query("max(bonbon_rounds_unsuccessful_in_a_row)")),
    age("Last round ended", "bonbon_round_ended_timestamp_seconds"),
    age("Newest round began", "bonbon_round_begun_timestamp_seconds"),
    stacked(
        "Groups logged, by why they are unclean",
        Query('sum by (unclean) (increase(bonbon_groups_logged_total{unclean!=""}[$__rate_interval]))', "{{unclean}}"),
        Query('sum(increase(bonbon_groups_logged_total{unclean=""}[$__rate_interval]))', "clean"),
    ),
    stacked(
        "Groups logged, by origin",
        Query("sum by (origin) (increase(bonbon_groups_logged_total[$__rate_interval]))", "{{origin}}"),
    ),
    stacked(
        "Where groups went", Query("sum by (where) (increase(bonbon_groups_kept_total[$__rate_interval]))", "{{where}}")
    ),
    lines(
        "Margin of a pair, in reward",
        *(
            Query(quantile(share, 'bonbon_reward_best_minus_worst_bucket{reward=~"$reward"}'), f"p{share * 100:.0f}")
            for share in (0.1, 0.5, 0.9)
        ),
        description="Best minus worst of the groups that were ranked.",
    ),
    lines("Spool", Query("sum by (instance) (bonbon_spool_bytes)", "{{instance}}"), unit="bytes"),
    lines("Groups set aside", Query("max by (instance) (bonbon_groups_set_aside)", "{{instance}}"), minimum=0),
    lines(
        "Training done",
        Query("max(bonbon_round_progress_ratio)", "newest round"),
        unit="percentunit",
        minimum=0,
        maximum=1,
    ),
    lines("Loss", Query("max(bonbon_training_loss)", "loss")),
    lines(
        "Margin of the newest round, nats",
        Query("max(bonbon_training_margin_nats)", "margin"),
        Query("max(bonbon_training_target_nats)", "target"),
    ),
    Panel(
        "Rounds",
        "bargauge",
        [Query("max by (outcome) (bonbon_rounds)", "{{outcome}}")],
        instant=True,
        options={"orientation": "horizontal", "reduceOptions": {"calcs": ["lastNotNull"]}},
    ),
    Panel(
        "Evaluations",
        "table",
        [
            Query(evaluated("bonbon_evaluation_win_rate", "low", opponent="base")),
            Query(evaluated("bonbon_evaluation_win_rate", "high", opponent="base")),
            Query(evaluated("bonbon_evaluation_best_of_k_win_rate", "value", opponent="best_of_n")),
            Query("max by (model_version) (bonbon_gate_k)"),
            Query("max by (model_version) (bonbon_gate_saved_ratio)"),
            Query(evaluated("bonbon_evaluation_kl_nats", "value")),
            Query(evaluated("bonbon_evaluation_length_ratio", "value")),
            Query("max by (model_version) (bonbon_gate_passed)"),
        ],
        width=12,
        instant=True,
        decimals=3,
        transformations=columns(
            "win rate, low",
            "win rate, high",
            "against best-of-n",
            "draws an answer",
            "tokens saved",
            "KL, nats",
            "length over the base's",
            "passed the gate",
        ),
    ),
    Panel(
        "What the gate read",
        "table",
        [
            Query("max by (model_version, check) (bonbon_gate_value)"),
            Query("max by (model_version, check) (bonbon_gate_threshold)"),
        ],
        width=12,
        instant=True,
        decimals=3,
        transformations=columns("value", "threshold"),
    ),
]

HOME = [
    *MISSION,
    number("Alerts that fire", Query('count(ALERTS{alertname=~"Bonbon.*", alertstate="firing"}) or vector(0)')),
    number("Requests a second", Query("bonbon:requests:rate5m"), unit="reqps", no_value="none"),
    number("Errors, last 5 minutes", Query("bonbon:request_errors:ratio5m"), unit="percentunit", no_value="none"),
    Panel(
        "What answers",
        "table",
        [Query('max by (alias, model_version) (bonbon_alias_info{alias=~"champion|previous|challenger"})')],
        instant=True,
        transformations=[
            {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}, "renameByName": {}}}
        ],
    ),
    Panel(
        "Alerts",
        "table",
        [Query('max by (alertname, severity, alertstate) (ALERTS{alertname=~"Bonbon.*"})')],
        no_value="none",
        instant=True,
        transformations=[{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}],
    ),
    Panel(
        "Dashboards",
        "dashlist",
        [],
        options={"showSearch": True, "showStarred": False, "query": "", "tags": ["bonbon"], "maxItems": 20},
    ),
    lines(
        "Tokens drawn per answer",
        Query("bonbon:tokens_per_answer:ratio5m", "{{model_version}}, asked by {{asked}}"),
        minimum=0,
        width=12,
    ),
    lines("95th percentile of the latency", Query("bonbon:request_duration_seconds:p95_5m", "p95"), unit="s"),
    age("Last round ended", "bonbon_round_ended_timestamp_seconds"),
    number(
        "Groups until the next round",
        Query("clamp_min(max(bonbon_next_round_groups_needed) - max(bonbon_next_round_groups), 0)"),
        no_value="no round begins by itself",
        decimals=0,
    ),
]

DATABASE = 'datname="bonbon"'
ENGINES = [
    number("vLLM servers that answer", Query('sum(up{job="vllm"})'), no_value="none"),
    number("PostgreSQL", Query("min(pg_up)"), mappings=on_off("answers", "away"), no_value="not scraped"),
    number("Size of the database", Query(f"max(pg_database_size_bytes{{{DATABASE}}})"), unit="bytes"),
    lines("Requests at work", Query("sum by (server) (vllm:num_requests_running)", "{{server}}"), minimum=0),
    lines("Requests that wait", Query("sum by (server) (vllm:num_requests_waiting)", "{{server}}"), minimum=0),
    lines(
        "Cache for prompts and answers in use",
        Query("max by (server) (vllm:kv_cache_usage_perc)", "{{server}}"),
        unit="percentunit",
        minimum=0,
        maximum=1,
        description="At 100 % vLLM puts requests off: lower service.max_tokens_in_flight, or give vLLM more memory.",
    ),
    lines(
        "Tokens generated a second",
        Query("sum by (server) (rate(vllm:generation_tokens_total[$__rate_interval]))", "{{server}}"),
        minimum=0,
    ),
    lines(
        "Requests put off for want of memory",
        Query("sum by (server) (increase(vllm:num_preemptions_total[$__rate_interval]))", "{{server}}"),
        minimum=0,
    ),
    lines(
        "Connections to PostgreSQL",
        Query(f"sum(pg_stat_database_numbackends{{{DATABASE}}})", "open"),
        Query("max(pg_settings_max_connections)", "allowed"),
        minimum=0,
    ),
    lines(
        "Transactions a second",
        Query(f"sum(rate(pg_stat_database_xact_commit{{{DATABASE}}}[$__rate_interval]))", "committed"),
        Query(f"sum(rate(pg_stat_database_xact_rollback{{{DATABASE}}}[$__rate_interval]))", "rolled back"),
        minimum=0,
    ),
    lines("Deadlocks", Query(f"sum(increase(pg_stat_database_deadlocks{{{DATABASE}}}[$__rate_interval]))"), minimum=0),
]

DASHBOARDS: dict[str, dict[str, Any]] = {
    "home": dashboard("bonbon-home", "bonbon: Home", HOME, [REWARD], SWAPS),
    "win-rate": dashboard("bonbon-win-rate", "bonbon: Win rate", WIN_RATE, [REWARD], SWAPS),
    "service": dashboard("bonbon-service", "bonbon: Service", SERVICE, [INSTANCE], SWAPS),
    "pairs-and-training": dashboard("bonbon-pairs", "bonbon: Pairs and training", PAIRS, [REWARD], SWAPS),
    "engines-and-database": dashboard("bonbon-engines", "bonbon: Engines and database", ENGINES, [], SWAPS),
}


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"
    for name, content in DASHBOARDS.items():
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
