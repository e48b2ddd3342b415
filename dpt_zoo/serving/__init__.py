"""An HTTP service for detectors, and its client. The service needs FastAPI: `pip install "dpt-zoo[serve]"`."""
