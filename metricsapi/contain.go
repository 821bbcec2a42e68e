package metricsapi

// contain is aggregator.Store.Contain: what runs in the background does not end the process with a panic. At nil panics go on.
type contain func(part, subject string, do func()) (ok bool)

func (c contain) run(part, subject string, do func()) (ok bool) {
	if c != nil {
		return c(part, subject, do)
	}
	do()
	return true
}
