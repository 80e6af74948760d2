-- Health of a ModelEndpoint for Argo CD, from the conditions of its status.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not observed this spec yet"}
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition.status
end

local health = {status = "Progressing", message = status.message}
if conditions["Stalled"] == "True" then
  -- Also where an older revision still answers: what Git asks for is not what is served, and no
  -- retry is due. Whether the URL answers at all is the condition Ready.
  health.status = "Degraded"
elseif conditions["Ready"] == "True" and conditions["Reconciling"] ~= "True" then
  health.status = "Healthy"
end
return health
