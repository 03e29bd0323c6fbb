"""One OpenAI endpoint for all models of a MultiModel: catalog, waiting room, relay, fleet."""
