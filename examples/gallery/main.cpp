/// \file
/// Every bug of the catalogue, each in a process of its own, with the report it gets. See `--help`.

#include "catalogue.hpp"
#include "child.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace gallery {

using catalogue::bug;
using catalogue::line;

constexpr const char* usage =
    R"(usage: pmr-debug-gallery [--list] [--twin] [line or name...]

  Runs each bug of the catalogue in a child process, as the default report handler would end it, and shows the report.
  Lines are numbered as in docs/catalogue.md; without any, all bugs are run.

  --list   only say what there is
  --twin   run the corrected programs instead, which report nothing
)";

constexpr int nothing_reported = 3;

/// The default handler, which also counts.
class counting_handler final : public pmr_debug::report_handler {
public:
    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        ++reports;
        return text_.handle(r);
    }

    std::atomic<int> reports{0};

private:
    pmr_debug::text_handler text_;
};

struct job {
    const bug& what;
    bool planted;
};

void run_job(const void* context) {
    const job& j = *static_cast<const job*>(context);
    static counting_handler handler;
    pmr_debug::set_default_report_handler(&handler);
    // Where bad_alloc is all there is to see, that is the report.
    const bool by_exception = j.what.findings.empty() && j.what.end == catalogue::ending::throws;
    try {
        j.what.run(j.planted);
    } catch (const std::bad_alloc&) {
        if (by_exception) {
            std::fputs("std::bad_alloc\n", stderr);
            ++handler.reports;
        }
    }
    if (const std::string notes = catalogue::take_notes(); !notes.empty()) {
        std::fputs(notes.c_str(), stderr);
        ++handler.reports;
    }
    std::exit(handler.reports == 0 ? nothing_reported : EXIT_SUCCESS);
}

const line& line_of(const bug& b) {
    const auto all = catalogue::lines();
    return *std::find_if(all.begin(), all.end(), [&b](const line& l) { return std::strcmp(l.id, b.line) == 0; });
}

std::string tools_that_find(const line& l) {
    std::string names;
    const auto add = [&names](char mark, const char* name) {
        if (mark != ' ') {
            names += (names.empty() ? "" : ", ") + std::string(name) + (mark == '!' ? " (a bare crash)" : "");
        }
    };
    add(l.asan, "ASan+UBSan+LSan");
    add(l.valgrind, "Valgrind");
    add(l.debug, "_GLIBCXX_DEBUG");
    return names.empty() ? "no other tool" : names;
}

/// Returns: whether it ended as it should: planted, with a report; corrected, without.
bool show(const bug& b, bool planted) {
    const line& l = line_of(b);
    std::printf("\n== %s  %s\n   %s\n   also found by: %s\n\n", b.line, b.name, l.title, tools_that_find(l).c_str());
    const job j{b, planted};
    const catalogue::child_end end = catalogue::run_in_child(run_job, &j, /*capture=*/false);
    if (end.signalled) {
        std::printf("(ended by %s)\n", ::strsignal(end.number));
        const bool fault = end.number == SIGSEGV || end.number == SIGBUS;
        return planted && (fault ? b.end == catalogue::ending::faults : end.number == SIGABRT);
    }
    const bool reported = end.number != nothing_reported;
    if (!reported) {
        std::puts("(nothing to report)");
    }
    return reported == planted && (end.number == EXIT_SUCCESS || !reported);
}

void list() {
    for (const line& l : catalogue::lines()) {
        std::printf("%-3s %s\n", l.id, l.title);
        const std::vector<const bug*> bugs = catalogue::bugs_of(l.id);
        for (const bug* const b : bugs) {
            std::printf("      %s\n", b->name);
        }
        if (bugs.empty()) {
            std::puts("      (no program yet)");
        }
    }
}

int run(const std::vector<std::string_view>& arguments) {
    bool planted = true;
    std::vector<const bug*> chosen;
    for (const std::string_view argument : arguments) {
        if (argument == "--list") {
            list();
            return EXIT_SUCCESS;
        }
        if (argument == "--help" || argument == "-h") {
            std::fputs(usage, stdout);
            return EXIT_SUCCESS;
        }
        if (argument == "--twin") {
            planted = false;
            continue;
        }
        const std::size_t before = chosen.size();
        for (const bug& b : catalogue::bugs()) {
            if (argument == b.line || argument == b.name) {
                chosen.push_back(&b);
            }
        }
        if (chosen.size() == before) {
            std::fprintf(stderr, "pmr-debug-gallery: there is no '%s'; --list says what there is\n",
                         std::string(argument).c_str());
            return 2;
        }
    }
    if (chosen.empty()) {
        for (const bug& b : catalogue::bugs()) {
            chosen.push_back(&b);
        }
    }

    std::size_t as_they_should = 0;
    for (const bug* const b : chosen) {
        as_they_should += show(*b, planted) ? 1 : 0;
    }
    std::printf("\n%zu of %zu %s\n", as_they_should, chosen.size(), planted ? "reported" : "silent");
    return as_they_should == chosen.size() ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace gallery

int main(int argc, char** argv) {
    return gallery::run(std::vector<std::string_view>(argv + 1, argv + argc));
}
