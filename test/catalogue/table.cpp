// Writes docs/catalogue.md. `catalogue_table <file>` writes it, `catalogue_table --check <file>` fails if it is not
// what would be written.

#include "catalogue.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>

namespace {

using catalogue::bug;
using catalogue::line;

constexpr std::string_view introduction =
    R"(<!-- Written by test/catalogue/table.cpp: `cmake --build --preset gcc-debug --target catalogue_page`. -->

# The bug catalogue

Each line is one small program. With the bug planted it is reported as the line says: kind, facts, and function names in the
traces. Its corrected twin, the same program but for the bug, is silent. `ctest -L catalogue` runs them, a test a line; the
programs stand in `test/catalogue/cases`, and `pmr-debug-gallery` shows their reports.

The first three columns say who reports the bug without this library, at -O0: A = g++ with AddressSanitizer,
UndefinedBehaviorSanitizer and LeakSanitizer, V = Valgrind's Memcheck, D = `_GLIBCXX_DEBUG`; x reported, ! a bare crash, empty
silent. "pool" and "arena" stand for any resource of that kind.
)";

/// A bug under a line that does not exist would stand nowhere, and be run by no test.
bool every_bug_has_a_line() {
    const auto lines = catalogue::lines();
    return std::all_of(catalogue::bugs().begin(), catalogue::bugs().end(), [lines](const bug& b) {
        return std::any_of(lines.begin(), lines.end(),
                           [&b](const line& l) { return std::string_view(l.id) == b.line; });
    });
}

std::string mark(char c) {
    return c == ' ' ? "" : std::string(1, c);
}

/// What a bug is reported as.
std::string reported_as(const bug& b) {
    std::string text;
    for (const catalogue::finding& f : b.findings) {
        const std::string kind(pmr_debug::to_string(f.kind));
        if (text.find(kind) == std::string::npos) {
            text += (text.empty() ? "" : ", ") + kind;
        }
    }
    if (text.empty() && b.end == catalogue::ending::throws) {
        text = "`std::bad_alloc`";
    }
    if (b.notes != nullptr) {
        text += (text.empty() ? "" : ", ") + ("\"" + std::string(b.notes) + "\"");
    }
    if (b.end == catalogue::ending::faults) {
        text += " (an explained fault)";
    }
    return text;
}

void write_row(std::ostream& out, const line& l) {
    const std::vector<const bug*> bugs = catalogue::bugs_of(l.id);
    std::string kinds;
    std::string finders;
    for (const bug* const b : bugs) {
        kinds += (kinds.empty() ? "" : "; ") + reported_as(*b);
        if (finders.find(b->found_by) == std::string::npos) {
            finders += (finders.empty() ? "" : "; ") + std::string(b->found_by);
        }
    }
    if (l.open != nullptr) {
        kinds += "; open: " + std::string(l.open);
    }
    out << "| " << l.id << " | " << l.title << " | " << mark(l.asan) << " | " << mark(l.valgrind) << " | "
        << mark(l.debug) << " | " << (bugs.empty() ? "open" : kinds) << " | " << finders << " |\n";
}

std::string page() {
    std::ostringstream out;
    out << introduction;
    std::string section;
    std::size_t caught = 0;
    std::size_t partly = 0;
    std::size_t silent = 0;
    std::string open;
    for (const line& l : catalogue::lines()) {
        if (section != l.section) {
            section = l.section;
            out << "\n## " << section << "\n\n"
                << "| # | bug | A | V | D | pmr_debug reports | found by |\n"
                << "|---|---|---|---|---|---|---|\n";
        }
        write_row(out, l);
        const bool has_bugs = !catalogue::bugs_of(l.id).empty();
        caught += has_bugs ? 1 : 0;
        partly += has_bugs && l.open != nullptr ? 1 : 0;
        silent += has_bugs && l.asan == ' ' && l.valgrind == ' ' && l.debug == ' ' ? 1 : 0;
        if (!has_bugs || l.open != nullptr) {
            open += (open.empty() ? "" : ", ") + std::string(l.id) + (has_bugs ? " (in part)" : "");
        }
    }
    out << "\n## Sum\n\n" << caught << " of " << catalogue::lines().size() << " lines are reported";
    if (partly != 0) {
        out << ", " << partly << " of them in part";
    }
    out << ", by " << catalogue::bugs().size() << " programs. " << silent
        << " of those lines are silent under all three other tools.\n";
    if (!open.empty()) {
        out << "\nOpen: " << open << ".\n";
    }
    return out.str();
}

}  // namespace

int main(int argc, char** argv) {
    const bool check = argc == 3 && std::string_view(argv[1]) == "--check";
    if (argc != 2 && !check) {
        std::cerr << "usage: catalogue_table [--check] <file>\n";
        return 2;
    }
    if (!every_bug_has_a_line()) {
        std::cerr << "a bug stands under a line that is not in the catalogue\n";
        return EXIT_FAILURE;
    }
    const char* const file = argv[argc - 1];
    const std::string wanted = page();
    if (!check) {
        std::ofstream(file) << wanted;
        return EXIT_SUCCESS;
    }
    std::ifstream in(file);
    const std::string is{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (is != wanted) {
        std::cerr << file << " is not what the catalogue says; write it again with the target catalogue_page\n";
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
