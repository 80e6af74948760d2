-- Health of a FineTuneJob for Argo CD, from the conditions of its status.
-- Argo CD offers no string library to a health check, so nothing is read from messages.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not observed this spec yet"}
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function is_true(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local health = {status = "Progressing", message = status.message}
if is_true("Succeeded") then
  health.status = "Healthy"
elseif is_true("Stalled") then
  -- The job has failed, or waits for a person to provide what the message names.
  health.status = "Degraded"
elseif is_true("Suspended") then
  health.status = "Suspended"
elseif is_true("Reconciling") and conditions["Reconciling"].reason == "WaitingForQueue" then
  -- Kueue, or another controller, has suspended the Job of the stage.
  health.status = "Suspended"
end
return health
