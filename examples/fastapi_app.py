"""Orders in FastAPI, with a health check of its own. Needs `pip install fastapi 'toska-mesh[uvicorn]'`.

Served by itself (`python examples/fastapi_app.py`), or by uvicorn as a service of the mesh all the same:
`cd examples && uvicorn fastapi_app:app --port 0`.
"""

from fastapi import FastAPI, HTTPException

from toska_mesh.sdk import join, serve

ORDERS = {1: "bread", 2: "milk"}

api = FastAPI(title="orders")


@api.get("/orders/{number}")
async def order(number: int) -> dict[str, object]:
    if number not in ORDERS:
        raise HTTPException(404, "no such order")
    return {"number": number, "item": ORDERS[number]}


async def stock() -> str:
    return "Healthy" if ORDERS else "Degraded: sold out"


if __name__ == "__main__":
    serve(api, name="orders", checks={"stock": stock})
else:
    app = join(api, name="orders", checks={"stock": stock})
