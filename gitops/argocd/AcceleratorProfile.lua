-- Health of an AcceleratorProfile for Argo CD, from the conditions of its status.
local status = obj.status or {}
if status.conditions == nil then
  -- Operators that watch only some namespaces write no status.
  return {status = "Healthy", message = ""}
end
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not observed this spec yet"}
end

for _, condition in ipairs(status.conditions) do
  if condition.type == "Stalled" and condition.status == "True" then
    return {status = "Degraded", message = status.message}
  end
end
return {status = "Healthy", message = status.message}
