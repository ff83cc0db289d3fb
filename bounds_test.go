package wireguard

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestBoundsAreDocumented compares the table of bounds in ARCHITECTURE.md with the code: each row begins with a constant and has
// its value, and each constant has a row.
func TestBoundsAreDocumented(t *testing.T) {
	bounds := map[string]int{
		"maxInitiations": maxInitiations, "maxAnswers": maxAnswers, "limiterSize": limiterSize, "maxLookups": maxLookups,
		"maxLookedUp": maxLookedUp, "maxStaged": maxStaged, "maxStagedPerPeer": maxStagedPerPeer, "maxStagedBytes": maxStagedBytes,
		"maxQueued": maxQueued, "maxUnreachables": maxUnreachables, "maxUnread": maxUnread,
	}
	text := fileText(t, "ARCHITECTURE.md")
	for _, row := range regexp.MustCompile(`(?m)^\| `+"`(\\w+)`"+`: [^|]* \| ([\d,]+)`).FindAllStringSubmatch(text, -1) {
		name, limit := row[1], strings.ReplaceAll(row[2], ",", "")
		want, ok := bounds[name]
		if got, err := strconv.Atoi(limit); !ok || err != nil || got != want {
			t.Errorf("ARCHITECTURE.md says that %s is %s: it is %d", name, row[2], want)
		}
		delete(bounds, name)
	}
	for name := range bounds {
		t.Errorf("ARCHITECTURE.md has no row for %s", name)
	}
	if want := "`loadMessages` (" + strconv.Itoa(loadMessages) + ")"; !strings.Contains(text, want) {
		t.Errorf("ARCHITECTURE.md does not say %s", want)
	}
}
