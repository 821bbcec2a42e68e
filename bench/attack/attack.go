// Package attack is what one sender can do to a meshpulse, and the sidecars of a fixed pace that it is done beside.
//
// It knows the wire. It must not know clusters or processes: bench/lab runs it, and has the attacks that need them. Everything is
// bounded in time and count and stays on loopback.
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
}

// Attack is what one sender does until the context ends.
type Attack struct {
	Name, What string
	// For is how long it has to last to do what it can, After how long one has to look on to see what stays.
	For, After time.Duration
	// Sends is what it has to send to be one, in bytes: much less than it does where it has a CPU.
	Sends float64
	Run   func(ctx context.Context, t Target)
}

// Times of attacks: a flood shows at once; who lies has done all that it can once --hold of half a minute is over.
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
		{"identifiers", "one message that says 200,000 times who reports, 4 connections", flood, 0, mb, identifiers},
		{"gzip", "64 MiB of zeros compressed, 16 connections", flood, 0, mb / 2, gzipped},
		{"podflood", "100,000 pods' names, a message each, 8 connections", flood, 0, mb, podflood},
		{"oddnames", "pods' names that Kubernetes has none of: newline, NUL, ESC, RTL, dots, 8 connections", flood, 0, mb / 2, oddnames},
		{"padding", "88 KiB of padding on each of 1,000 connections", flood, 0, 10 * mb, padding},
		{"onebyte", "a message of a byte a frame, 16 connections", flood, 0, mb, onebyte},
		{"labelflood", "250 series of 50 labels of 2 KB at each flush, 4 pods", flood, 0, 20 * mb, labelflood},
		{"trickle", "50 messages that are never finished on each of 50 connections that finish others", flood, 0, mb, trickle},
		{"connections", "5,000 connections to the ingest port that say nothing more", flood, 0, mb / 20, idle(ingest)},
		{"https", "3,000 connections to the HTTPS port that say nothing", flood, 0, mb / 40, idle(https)},
		{"settings", "SETTINGS without end, 4 connections", flood, 0, mb, flooding(settingsFrame)},
		{"resets", "streams that are reset at once, 4 connections", flood, 0, mb, flooding(resetFrames)},
		{"emptydata", "empty DATA without end, 4 connections", flood, 0, mb, flooding(emptyData)},
		{"continuation", "a block of headers without end, 4 connections", flood, 0, mb, flooding(endlessHeaders)},
		{"slowone", "the victims' workload in the labels of another pod that says it flushes every hour, once", lie, stays, 500, slowone},
		{"newnames", "a new pod's name of the victims' workload a second, each says it flushes every hour, a message each", claim, 0, 5000, newnames},
		{"phantom", "the victims' workload in the labels of another pod, 1,000 requests a second", claim, 0, 3000, phantom},
		{"unknown", "a pod of the victims' workload that the cluster does not know, 1,000 requests a second", lie, stays, 3000, unknown},
		{"steal", "a message in each victim's name, once, and gone", lie, stays, 3000, steal},
		{"zero", "flushes in each victim's name, without requests", lie, stays, 20_000, zero},
		{"posed", "flushes in each victim's name, without requests, from the address of a pod of the attacker's", lie, stays, 3000, posed},
		{"waypoint", "the victims' workload as a waypoint has it, 1,000 requests a second, by a pod that is none", claim, 0, 3000, waypoint},
		{"hostflood", "6,000 more Host headers at each flush of a pod that is called", claim, 0, mb, hostflood},
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
