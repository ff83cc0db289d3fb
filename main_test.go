package wireguard

import (
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
