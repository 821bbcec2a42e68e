// Package explain says why the metrics of an HPA have the values that they have, and what the
// controller makes of them: as data, whose JSON is stable ([Explanation]), and in sentences
// ([Explanation.Text]). [Explanation.Diagnose] finds what is wrong, with its cause and remedy, and
// [Table] shows many HPAs at a glance, the worst first.
//
// It knows what was found out: numbers, pods, rules. It must not know who found it out: no store,
// no cluster, no clock. What stands in it is other people's text, so all that it prints goes
// through [Printable].
package explain
