"""One module for each suite; each has `async def run(context) -> SuiteResult`."""
