"""Names under which the parts of one instance find each other in Ray."""

NAMESPACE = "lorebase"
HUB_ACTOR = "lorebase-route-hub"
CONTROLLER_ACTOR = "lorebase-upgrade-controller"
GATEWAY_APP = "gateway"
GATEWAY_DEPLOYMENT = "Gateway"
ENGINE_DEPLOYMENT = "Engine"


def engine_app_name(base_id: str) -> str:
    """Returns the name of the Serve application of a base's engine."""
    return f"engine-{base_id}"
