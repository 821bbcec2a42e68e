package explain

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable is a text of others in one line that a terminal shows and does not obey: control
// characters, marks that turn the direction of writing, other invisible ones and bytes that are no
// UTF-8 are written as escapes. A text without any is returned as it is.
func Printable(s string) string {
	i := 0
	for i < len(s) {
		r, n := utf8.DecodeRuneInString(s[i:])
		if !shown(r, n) {
			break
		}
		i += n
	}
	if i == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:i])
	for i < len(s) {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case shown(r, n):
			b.WriteRune(r)
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += n
	}
	return b.String()
}

// PrintableLines is Printable for a text of several lines, which stay lines.
func PrintableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = Printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

// shown says whether a terminal shows a rune of n bytes as a sign of its own.
func shown(r rune, n int) bool {
	return (r != utf8.RuneError || n > 1) && (r == ' ' || unicode.IsGraphic(r) && !unicode.Is(unicode.Zs, r))
}
