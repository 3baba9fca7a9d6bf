"""`python -m services.router`."""

from services.chassis.run import main
from services.router.compose import build
from services.router.settings import RouterSettings

if __name__ == "__main__":
    main("router", RouterSettings, build)
