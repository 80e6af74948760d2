-- Health of an AcceleratorProfile for Argo CD: it has no status, as it only describes nodes.
return {status = "Healthy", message = ""}
