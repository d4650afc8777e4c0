#include "options.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <iostream>
#include <utility>

namespace demo {

namespace {

template <class Value>
struct named {
    std::string_view name;
    Value value;
};

constexpr std::array bugs{
    named<planted_bug>{"leak", planted_bug::leak},
    named<planted_bug>{"double-free", planted_bug::double_free},
    named<planted_bug>{"wrong-size", planted_bug::wrong_size},
    named<planted_bug>{"wrong-alignment", planted_bug::wrong_alignment},
    named<planted_bug>{"overrun", planted_bug::overrun},
    named<planted_bug>{"use-after-free", planted_bug::use_after_free},
    named<planted_bug>{"foreign-thread", planted_bug::foreign_thread},
    named<planted_bug>{"wrong-resource", planted_bug::wrong_resource},
};

constexpr std::array policies{
    named<shipped_policy>{"default", shipped_policy::default_},
    named<shipped_policy>{"fast", shipped_policy::fast},
    named<shipped_policy>{"thorough", shipped_policy::thorough},
    named<shipped_policy>{"release", shipped_policy::release},
};

/// Effects: sets \p value to what \p name stands for. Returns: false, after a message, if it stands for nothing.
template <class Table, class Value>
bool look_up(const Table& table, std::string_view option, std::string_view name, Value& value) {
    const auto found = std::find_if(table.begin(), table.end(), [name](const auto& e) { return e.name == name; });
    if (found != table.end()) {
        value = found->value;
        return true;
    }
    std::cerr << "word_index: " << option << " takes one of";
    for (const auto& entry : table) {
        std::cerr << ' ' << entry.name;
    }
    std::cerr << ", not '" << name << "'\n";
    return false;
}

bool parse_runs(std::string_view text, unsigned& runs) {
    const char* const end = text.data() + text.size();
    const auto [stopped, error] = std::from_chars(text.data(), end, runs);
    if (error != std::errc{} || stopped != end || runs == 0 || runs > 99) {
        std::cerr << "word_index: --runs takes a number from 1 to 99, not '" << text << "'\n";
        return false;
    }
    return true;
}

}  // namespace

std::optional<options> parse(int argc, const char* const* argv) {
    options o;
    std::vector<std::string> paths;
    bool only_paths = false;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (only_paths || argument.empty() || argument.front() != '-') {
            paths.emplace_back(argument);
        } else if (argument == "--") {
            only_paths = true;
        } else if (argument == "--json") {
            o.json = true;
        } else if (argument == "--help" || argument == "-h") {
            o.help = true;
        } else if (argument == "--plant" || argument == "--policy" || argument == "--runs") {
            if (++i == argc) {
                std::cerr << "word_index: " << argument << " needs a value\n";
                return std::nullopt;
            }
            const bool understood = argument == "--plant"    ? look_up(bugs, argument, argv[i], o.bug)
                                    : argument == "--policy" ? look_up(policies, argument, argv[i], o.policy)
                                                             : parse_runs(argv[i], o.runs);
            if (!understood) {
                return std::nullopt;
            }
        } else {
            std::cerr << "word_index: unknown option '" << argument << "'; --help lists them\n";
            return std::nullopt;
        }
    }
    if (!paths.empty()) {
        o.paths = std::move(paths);
    }
    return o;
}

std::string_view policy_name(shipped_policy p) {
    return std::find_if(policies.begin(), policies.end(), [p](const auto& e) { return e.value == p; })->name;
}

void print_help(const char* program) {
    std::cout << "usage: " << program << R"( [options] [file or folder ...]

Builds an index of every word in the files (default: /usr/include) in std::pmr containers on a chain of debug
resources, tracking > general_purpose > pages, and runs the same on std::pmr::new_delete_resource() to compare.

  --plant <bug>      run once, with a bug in it, and see what is reported; bugs:
                     leak double-free wrong-size wrong-alignment overrun use-after-free foreign-thread wrong-resource
  --policy <name>    default, fast (checks without traces, canaries, fills), thorough (deeper traces,
                     write-protected records; slow), release (no checks)
  --json             reports as JSON lines, and carry on after each
  --runs <n>         runs of each kind, of which the median counts (default 3)

Reports go to standard error. Exit status: 0 all is well; 1 leaks, or errors with --json; 2 bad arguments; 3 the planted
bug went unnoticed under this policy. Any other error ends the program by SIGABRT, as the default handler does.
)";
}

}  // namespace demo
