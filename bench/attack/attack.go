// Package attack is what one sender can do to a meshpulse, and the sidecars of a fixed pace that it
// is done beside.
//
// It knows the wire. It must not know clusters or processes: bench/lab runs it, and has the attacks
// that need them. Everything is bounded in time and count and stays on loopback.
package attack

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Pod is who says that it reports.
type Pod struct {
	Namespace, Name, Workload string
	// Address is where it connects from; all of 127/8 is loopback.
	Address string
	// Flush is the interval that it tells, "" for none.
	Flush string
}

// Target is what is attacked.
type Target struct {
	// Ingest and HTTPS are meshpulse's ports, host:port.
	Ingest, HTTPS string
	// Victims are the pods whose workload the answers are of.
	Victims []Pod
	// Witness is a pod that something is told of, in the log, beside what is told of attackers.
	Witness Pod
}

// Attack is what one sender does until the context ends.
type Attack struct {
	Name, What string
	// For is how long it has to last to do what it can, After how long one has to look on to see
	// what stays.
	For, After time.Duration
	// Sends is what it has to send to be one, in bytes: much less than it does where it has a CPU.
	Sends float64
	Run   func(ctx context.Context, t Target)
	// Descriptors are how many the attacked may have, 0 for as many as the system gives.
	Descriptors int
	// Tells: the log has to name the witness's address.
	Tells bool
}

// Times of attacks: a flood shows at once, one that pauses between its flushes after some of them;
// who lies has done all that it can once --hold of half a minute is over.
const (
	flood = 5 * time.Second
	claim = 14 * time.Second
	lie   = 32 * time.Second
	stays = 13 * time.Second // the window, and two flushes
)

const mb = 1e6

// All are the attacks over the wire.
func All() []Attack {
	return []Attack{
		{Name: "identifiers", What: "one message that says 200,000 times who reports, 4 connections", For: flood, Sends: mb, Run: identifiers},
		{Name: "gzip", What: "64 MiB of zeros compressed, 16 connections", For: flood, Sends: mb / 2, Run: gzipped},
		{Name: "podflood", What: "100,000 pods' names, a message each, 8 connections", For: flood, Sends: mb, Run: podflood},
		{Name: "oddnames", What: "pods' names that Kubernetes has none of: newline, NUL, ESC, RTL, dots, 8 connections", For: flood, Sends: mb / 2, Run: oddnames},
		{Name: "padding", What: "88 KiB of padding on each of 1,000 connections", For: flood, Sends: 10 * mb, Run: padding},
		{Name: "onebyte", What: "a message of a byte a frame, 16 connections", For: flood, Sends: mb, Run: onebyte},
		{Name: "labelflood", What: "250 series of 50 labels of 2 KB at each flush, 4 pods", For: claim, Sends: 20 * mb, Run: labelflood},
		{Name: "trickle", What: "50 messages that are never finished on each of 50 connections that finish others", For: flood, Sends: mb, Run: trickle},
		{Name: "connections", What: "5,000 connections to the ingest port that say nothing more", For: flood, Sends: mb / 20, Run: idle(ingest)},
		{Name: "descriptors", What: "400 connections to the ingest port that say nothing more, where 256 descriptors are all there are", For: flood, Sends: mb / 100, Run: idle(few), Descriptors: 256},
		{Name: "https", What: "3,000 connections to the HTTPS port that say nothing", For: flood, Sends: mb / 40, Run: idle(https)},
		{Name: "settings", What: "SETTINGS without end, 4 connections", For: flood, Sends: mb, Run: flooding(settingsFrame)},
		{Name: "resets", What: "streams that are reset at once, 4 connections", For: flood, Sends: mb, Run: flooding(resetFrames)},
		{Name: "emptydata", What: "empty DATA without end, 4 connections", For: flood, Sends: mb, Run: flooding(emptyData)},
		{Name: "continuation", What: "a block of headers without end, 4 connections", For: flood, Sends: mb, Run: flooding(endlessHeaders)},
		{Name: "warnings", What: "10,000 other pods' names from the attacker's address, and one from another pod's, of which a line has to tell", For: flood, Sends: mb / 10, Run: warnings, Tells: true},
		{Name: "slowone", What: "the victims' workload in the labels of another pod that says it flushes every hour, once", For: lie, After: stays, Sends: 500, Run: slowone},
		{Name: "newnames", What: "a new pod's name of the victims' workload a second, each says it flushes every hour, a message each", For: claim, Sends: 5000, Run: newnames},
		{Name: "phantom", What: "the victims' workload in the labels of another pod, 1,000 requests a second", For: claim, Sends: 3000, Run: phantom},
		{Name: "unknown", What: "a pod of the victims' workload that the cluster does not know, 1,000 requests a second", For: lie, After: stays, Sends: 3000, Run: unknown},
		{Name: "steal", What: "a message in each victim's name, once, and gone", For: lie, After: stays, Sends: 3000, Run: steal},
		{Name: "zero", What: "flushes in each victim's name, without requests", For: lie, After: stays, Sends: 20_000, Run: zero},
		{Name: "posed", What: "flushes in each victim's name, without requests, from the address of a pod of the attacker's", For: lie, After: stays, Sends: 3000, Run: posed},
		{Name: "waypoint", What: "the victims' workload as a waypoint has it, 1,000 requests a second, by a pod that is none", For: claim, Sends: 3000, Run: waypoint},
		{Name: "hostflood", What: "6,000 more Host headers at each flush of a pod that is called", For: claim, Sends: mb, Run: hostflood},
	}
}

// Namespace is the attackers' own.
const Namespace = "evil"

// network is where they connect from: whoever is named by such an address is one of them.
const network = "127.66.0."

// Attacker reports whether a text names an attacker.
func Attacker(text string) bool {
	for i := 0; i+len(network) <= len(text); i++ {
		if text[i:i+len(network)] == network {
			return true
		}
	}
	return false
}

// Own are the pods that the attackers really have: what they say in their own name is true.
func Own() (pods []Pod) {
	for i, name := range []string{"flood", "slow", "phantom", "hosty", "labels-0", "labels-1", "labels-2", "labels-3"} {
		pods = append(pods, Pod{Namespace: Namespace, Name: name, Workload: name, Address: fmt.Sprint(network, 10+i)})
	}
	return pods
}

// own is one of them; any other name is one that nobody knows, of an address that is nobody's.
func own(name string) Pod {
	for _, p := range Own() {
		if p.Name == name {
			return p
		}
	}
	return Pod{Namespace: Namespace, Name: name, Workload: name, Address: network + "250"}
}

// as is the pod in the name of another one.
func (p Pod) as(victim Pod) Pod {
	victim.Address = p.Address
	return victim
}

// from is the address that a pod connects from.
func (p Pod) from() netip.Addr { return netip.MustParseAddr(p.Address) }
