package documents

import (
	"regexp"
	"slices"
	"strings"
)

// Parse returns the blocks of a document, whatever they are for: code blocks of a shell, indented
// ones whose first line names a program for a cluster or of the project, and code spans that are a
// command for a cluster.
func Parse(document string) []Block {
	p := &parser{}
	for text := range strings.Lines(document) {
		p.number++
		p.line(strings.TrimRight(text, "\n"))
	}
	p.end()
	return p.blocks
}

// parser goes through a document line by line. Each code block, paragraph, item of a list and row
// of a table ends what was before it.
type parser struct {
	number int
	blocks []Block
	// fence is what ends the fenced block that the line is in, kind what its beginning says of it.
	fence, kind string
	// code are the lines of the code block so far, text those of the paragraph, first the number of
	// the first of them.
	code, text []string
	first      int
	// excuse is for the block or paragraph that comes next.
	excuse string
	// blank says that the line before was one: only then does an indented block begin.
	blank bool
}

var (
	excuse  = regexp.MustCompile(`^\s*<!-- not run: (.+?) -->\s*$`)
	item    = regexp.MustCompile(`^\s*([-*|]|\d+\.) ?`)
	inline  = regexp.MustCompile("`([^`]+)`")
	started = regexp.MustCompile(`^(kubectl|istioctl|helm|cmctl|make|go|curl|sudo|docker|cd|bin/|manifests/|\.cache/)`)
)

func (p *parser) line(text string) {
	trimmed := strings.TrimSpace(text)
	switch {
	case p.fence != "":
		if trimmed == p.fence {
			p.endCode()
		} else {
			p.code = append(p.code, trimmed)
		}
		return
	case strings.HasPrefix(trimmed, "```"):
		p.end()
		p.fence, p.kind, p.first = "```", strings.TrimSpace(strings.TrimPrefix(trimmed, "```")), p.number+1
		return
	case strings.HasPrefix(text, "    ") && (len(p.code) > 0 || p.blank && len(p.text) == 0):
		p.begin()
		p.code = append(p.code, trimmed)
		return
	}
	p.endCode()
	p.blank = trimmed == ""
	switch reason := excuse.FindStringSubmatch(text); {
	case reason != nil:
		p.end()
		p.excuse, p.blank = reason[1], true
	case trimmed == "":
		p.endText()
	default:
		if item.MatchString(text) {
			p.endText()
		}
		p.begin()
		p.text = append(p.text, trimmed)
	}
}

// begin notes where a code block or a paragraph begins.
func (p *parser) begin() {
	if len(p.code) == 0 && len(p.text) == 0 {
		p.first = p.number
	}
}

func (p *parser) end() {
	p.endCode()
	p.endText()
}

func (p *parser) endCode() {
	lines, fenced := p.code, p.fence != ""
	ofShell := slices.Contains(shell, p.kind)
	p.code, p.fence, p.kind = nil, "", ""
	if len(lines) == 0 && !fenced {
		return
	}
	block := Block{Line: p.first, Excuse: p.excuse}
	p.excuse = ""
	var open string
	for _, text := range lines {
		if before, more := strings.CutSuffix(text, `\`); more {
			open += strings.TrimSpace(before) + " "
			continue
		}
		text, open = open+text, ""
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		command, comment, _ := strings.Cut(strings.TrimPrefix(text, "$ "), " # ")
		block.Commands = append(block.Commands, Command{strings.TrimSpace(command), strings.TrimSpace(comment)})
	}
	if len(block.Commands) > 0 && (ofShell || !fenced && started.MatchString(block.Commands[0].Text)) {
		p.blocks = append(p.blocks, block)
	}
}

// endText looks for commands in a paragraph.
func (p *parser) endText() {
	if len(p.text) == 0 {
		return
	}
	text := strings.Join(p.text, " ")
	p.text = nil
	for _, found := range inline.FindAllStringSubmatch(text, -1) {
		command := strings.Join(strings.Fields(strings.ReplaceAll(found[1], `\|`, "|")), " ")
		if !span.MatchString(command) {
			continue
		}
		if strings.HasPrefix(command, "install.sh") {
			command = "manifests/" + command
		}
		p.blocks = append(p.blocks, Block{Line: p.first, Excuse: p.excuse, Commands: []Command{{Text: command}}})
	}
	p.excuse = ""
}

// Fenced returns what is in the first fenced block of a document that has the text.
func Fenced(document, text string) (string, bool) {
	for {
		_, rest, open := strings.Cut(document, "\n```")
		_, rest, _ = strings.Cut(rest, "\n") // the kind
		block, after, closed := strings.Cut(rest, "\n```")
		if !open || !closed {
			return "", false
		}
		if strings.Contains(block, text) {
			return block + "\n", true
		}
		document = after
	}
}
