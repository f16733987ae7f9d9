"""The report at W&B, up to what W&B's API is asked: what it is sent is read back."""

import json
from types import SimpleNamespace

import pytest
import wandb
from tests.stored_studies import write_position_study

from attnlab.analysis import compare, load_study, to_markdown
from attnlab.analysis.headline import headline


class Service:
    """Stands for W&B's server: keeps what it is asked, and answers as it does."""

    app_url = "https://wandb.ai"

    def __init__(self):
        self.asked = []

    def execute_graphql(self, query, variables):
        self.asked.append(variables)
        if "spec" not in variables:
            return {"project": {"internalId": "inner"}}
        view = {"id": "VIEW", "name": "n", "type": "runs", "displayName": variables["displayName"], "description": ""}
        return {
            "upsertView": {"view": view | {"project": {"name": "p", "entityName": "team"}, "spec": variables["spec"]}}
        }


@pytest.fixture
def service(monkeypatch):
    found = Service()
    api = SimpleNamespace(
        _service_api=found, default_entity="of_key", projects=lambda entity: [SimpleNamespace(name="mine")]
    )
    monkeypatch.setattr(wandb, "Api", lambda: api)
    for name in ("WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    return found


def test_a_report_has_question_answer_table_curves_and_bars(attnlab, here, service, monkeypatch):
    folder = write_position_study(here / "runs" / "positions")
    said = attnlab("wandb-report", folder.name, "--project", "mine", "--entity", "team")
    assert said.status == 0, said.err
    assert said.out.startswith("https://wandb.ai/team/mine/reports/")
    (sent,) = [one for one in service.asked if "spec" in one]
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("team", "mine", folder.name)
    study = load_study(folder)
    assert sent["description"] == study.question
    blocks = json.loads(sent["spec"])["blocks"]
    texts = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    comparison = compare(study)
    assert all(sentence in texts[0] for sentence in headline(comparison))
    assert texts[-1].strip() == to_markdown(comparison).strip()
    assert all(claim.says in texts[1] for claim in comparison.claims)
    (grid,) = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    (runs,) = grid["runSets"]
    assert (runs["project"]["name"], runs["project"]["entityName"]) == ("mine", "team")
    keys = [(one["key"]["section"], one["key"]["name"], one["op"], one["value"]) for one in runs["filters"]["filters"]]
    assert keys == [("config", "study", "=", folder.name), ("run", "jobType", "=", "train")]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    panels = grid["panelBankSectionConfig"]["panels"]
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    bars = [panel["config"] for panel in panels if panel["viewType"] == "Bar Chart"]
    assert [name for line in lines for name in line["metrics"]] == ["val/loss", "train/loss"]
    assert bars[0]["metrics"] == [study.metric.name]
    for panel in (*lines, *bars):
        assert (panel["groupBy"], panel["groupAgg"], panel["groupArea"]) == ("group", "mean", "stderr")

    def refuse(*_, **__):
        raise ValueError("permission denied\nfor team")

    monkeypatch.setattr(service, "execute_graphql", refuse, raising=False)
    said = attnlab("wandb-report", folder.name, "--entity", "team")
    assert (said.status, said.err) == (2, "attnlab: W&B did not take the report: permission denied for team\n")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = attnlab("wandb-report", folder.name)
    assert said.status == 2
    assert "W&B takes a report online alone, and its mode is offline, as WANDB_MODE is set" in said.err
