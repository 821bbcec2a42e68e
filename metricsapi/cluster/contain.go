package cluster

// Contain is aggregator.Store.Contain: what runs in the background does not end the process with a
// panic. At nil panics go on.
type Contain func(part, subject string, do func()) (ok bool)

func (c Contain) run(part, subject string, do func()) (ok bool) {
	if c != nil {
		return c(part, subject, do)
	}
	do()
	return true
}
