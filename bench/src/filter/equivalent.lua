-- What the filter decides about the benchmark's mesh, as somebody would write it in Lua: the same headers are read, a
-- table is asked, the same headers are set.

local viewer = "shanghai-a"
local homes = {
  ["shanghai-a"] = "shanghai-a",
  ["shanghai-b"] = "shanghai-b",
  ["beijing-c"] = "beijing-c",
  ["shanghai"] = "shanghai-a",
  ["beijing"] = "beijing-c",
}
local reads = { GET = true, HEAD = true, OPTIONS = true, TRACE = true }

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  if path ~= "/orders" and path:sub(1, 8) ~= "/orders/" then
    return
  end
  local grpc = headers:get("content-type") == "application/grpc"
  local class = (not grpc and reads[headers:get(":method")]) and "read" or "write"
  local home = homes[headers:get("x-region-id") or viewer] or viewer
  if class == "write" then
    headers:replace("x-tidegate-class", class)
  end
  if class == "read" or home ~= viewer then
    headers:replace("x-tidegate-home", home)
  end
end
