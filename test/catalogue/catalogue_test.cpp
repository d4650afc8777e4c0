// Every line of the catalogue: the planted bugs are reported with the kinds, the facts and the traces that the line
// asks for, and nothing else is; the corrected twins are silent.

#include "catalogue.hpp"
#include "child.hpp"
#include "text_report.hpp"

#include "support/sanitizers.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/collecting_handler.hpp>

#include <gtest/gtest.h>

#include <csignal>
#include <cstddef>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <string_view>
#include <vector>

namespace {

using catalogue::bug;
using catalogue::ending;
using catalogue::finding;
using catalogue::text_report;

class listening {
public:
    explicit listening(pmr_debug::report_handler& h) : before_(&pmr_debug::set_default_report_handler(&h)) {}
    ~listening() { pmr_debug::set_default_report_handler(before_); }
    listening(const listening&) = delete;
    listening& operator=(const listening&) = delete;

private:
    pmr_debug::report_handler* before_;
};

std::string all_of(const pmr_debug::collecting_handler& errors) {
    std::string text;
    for (std::size_t i = 0; i < errors.size(); ++i) {
        text.append(errors[i].text).append("\n");
    }
    return text;
}

// ---- one finding ----------------------------------------------------------------------------------------------------

void expect_trace(pmr_debug::trace_id id, const char* function, const char* which) {
    if (function != nullptr) {
        EXPECT_TRUE(test_support::trace_contains(id, function)) << "the trace '" << which << "' lacks " << function;
    }
}

void expect_number(std::size_t is, std::size_t wanted, const char* which) {
    if (wanted != catalogue::any) {
        EXPECT_EQ(is, wanted) << which;
    }
}

void expect_offset(const void* p, const pmr_debug::block_info& block, std::ptrdiff_t wanted, const char* which) {
    if (wanted != -1) {
        EXPECT_EQ(static_cast<const char*>(p) - static_cast<const char*>(block.address), wanted) << which;
    }
}

void expect_name(std::string_view is, const char* wanted, const char* which) {
    if (wanted != nullptr) {
        EXPECT_EQ(is, wanted) << which;
    }
}

void expect_finding(const pmr_debug::collecting_handler::entry& e, const finding& f) {
    const pmr_debug::report& r = e.facts;
    SCOPED_TRACE(std::string(e.text));
    EXPECT_EQ(pmr_debug::to_string(r.kind), pmr_debug::to_string(f.kind));
    expect_name(r.resource.name, f.resource, "resource");
    expect_name(r.owner.name, f.owner, "owner");

    const bool leak = !r.leaks.empty();
    expect_number(leak ? r.leaked_bytes : r.block.size, f.size, "size");
    expect_number(r.given_size, f.given_size, "given size");
    expect_number(r.block.alignment, f.alignment, "alignment");
    expect_number(r.given_alignment, f.given_alignment, "given alignment");
    expect_number(r.leaked_blocks, f.blocks, "leaked blocks");
    expect_offset(r.pointer, r.block, f.offset, "offset of the pointer");
    expect_offset(r.first_bad, r.block, f.bad_offset, "offset of the damage");

    expect_trace(r.here, f.here, "here");
    expect_trace(leak ? r.leaks.front().allocated : r.allocated, f.allocated, "allocated");
    expect_trace(r.freed, f.freed, "freed");
    expect_trace(r.other, f.other, "other");
    expect_trace(r.resource.born, f.born, "born");
    expect_trace(r.resource.died, f.died, "died");
    if (f.text != nullptr) {
        EXPECT_NE(e.text.find(f.text), std::string_view::npos) << "no '" << f.text << "'";
    }
}

// ---- in this process ------------------------------------------------------------------------------------------------

/// Returns: whether it ended by std::bad_alloc.
bool run(const bug& b, bool planted) {
    try {
        b.run(planted);
    } catch (const std::bad_alloc&) {
        return true;
    }
    return false;
}

void expect_planted_here(const bug& b) {
    pmr_debug::collecting_handler errors;
    const listening to(errors);
    EXPECT_EQ(run(b, true), b.end == ending::throws) << "std::bad_alloc";
    const std::string noted = catalogue::take_notes();
    EXPECT_EQ(noted.empty(), b.notes == nullptr) << noted;
    if (b.notes != nullptr) {
        EXPECT_NE(noted.find(b.notes), std::string::npos) << "no '" << b.notes << "' in the notes: " << noted;
    }
    ASSERT_EQ(errors.count(), b.findings.size()) << all_of(errors);
    for (std::size_t i = 0; i < b.findings.size(); ++i) {
        expect_finding(errors[i], b.findings[i]);
    }
}

void expect_silent_twin(const bug& b) {
    pmr_debug::collecting_handler errors;
    const listening to(errors);
    EXPECT_FALSE(run(b, false)) << "std::bad_alloc";
    EXPECT_EQ(catalogue::take_notes(), "");
    EXPECT_EQ(errors.count(), 0U) << all_of(errors);
}

// ---- in a child, which does not survive -----------------------------------------------------------------------------

std::string value(const std::map<std::string, std::string>& all, const char* which) {
    const auto at = all.find(which);
    return at != all.end() ? at->second : std::string();
}

void expect_words(const std::string& in, const char* wanted, const char* which) {
    if (wanted != nullptr) {
        EXPECT_NE(in.find(wanted), std::string::npos) << "no '" << wanted << "' in " << which << ": " << in;
    }
}

void expect_quoted(const std::string& in, const char* wanted, const char* which) {
    if (wanted != nullptr) {
        expect_words(in, ("\"" + std::string(wanted) + "\" (").c_str(), which);
    }
}

void expect_distance(const std::string& fact, const std::string& block, std::ptrdiff_t wanted, const char* which) {
    if (wanted != -1) {
        ASSERT_NE(catalogue::address_in(fact), catalogue::none) << which;
        ASSERT_NE(catalogue::address_in(block), catalogue::none) << which;
        EXPECT_EQ(catalogue::address_in(fact) - catalogue::address_in(block), static_cast<std::size_t>(wanted))
            << which;
    }
}

/// As expect_finding, for what a child printed.
void expect_printed(const text_report& r, const finding& f) {
    EXPECT_EQ(r.headline.substr(0, r.headline.find(':')), pmr_debug::to_string(f.kind));
    expect_quoted(value(r.facts, "resource"), f.resource, "resource");
    expect_quoted(value(r.facts, "owner"), f.owner, "owner");
    const std::string block = value(r.facts, "block");
    const std::string given = value(r.facts, "given") + value(r.facts, "requested");
    if (f.size != catalogue::any) {
        expect_words(block, (", " + std::to_string(f.size) + " bytes,").c_str(), "block");
    }
    expect_number(catalogue::number_after(given, "size"), f.given_size, "given size");
    expect_number(catalogue::number_after(block, "alignment"), f.alignment, "alignment");
    expect_number(catalogue::number_after(given, "alignment"), f.given_alignment, "given alignment");
    expect_distance(value(r.facts, "pointer"), block, f.offset, "offset of the pointer");
    expect_distance(value(r.facts, "first bad"), block, f.bad_offset, "offset of the damage");
    expect_words(value(r.traces, "here"), f.here, "here");
    expect_words(value(r.traces, "allocated"), f.allocated, "allocated");
    expect_words(value(r.traces, "freed"), f.freed, "freed");
    expect_words(value(r.traces, "other use"), f.other, "other");
    expect_words(value(r.traces, "resource constructed"), f.born, "born");
    expect_words(value(r.traces, "resource destroyed"), f.died, "died");
    expect_words(r.text, f.text, "text");
}

void expect_planted_in_a_child(const bug& b) {
    const catalogue::child_end end = catalogue::run_in_child(
        [](const void* context) { static_cast<const bug*>(context)->run(true); }, &b, /*capture=*/true);
    EXPECT_TRUE(end.signalled) << "exit status " << end.number;
    if (b.end == ending::aborts) {
        EXPECT_STREQ(::strsignal(end.number), ::strsignal(SIGABRT));
    } else {
        EXPECT_TRUE(end.number == SIGSEGV || end.number == SIGBUS) << ::strsignal(end.number);
    }
    SCOPED_TRACE(end.output);
    const std::vector<text_report> reports = catalogue::parse_reports(end.output);
    ASSERT_EQ(reports.size(), b.findings.size());
    for (std::size_t i = 0; i < reports.size(); ++i) {
        expect_printed(reports[i], b.findings[i]);
    }
}

// ---- one test a line ------------------------------------------------------------------------------------------------

class CatalogueLine : public testing::TestWithParam<const catalogue::line*> {};

TEST_P(CatalogueLine, IsReportedAndItsCorrectedTwinIsNot) {
    for (const bug* const b : catalogue::bugs_of(GetParam()->id)) {
        SCOPED_TRACE(std::string("line ") + b->line + ", " + b->name);
        expect_silent_twin(*b);
        const bool explained = std::string_view(b->found_by).find("fault_handler") != std::string_view::npos;
        if (TEST_SANITIZED != 0 && (explained || b->calls_the_dead)) {
            continue;  // sanitizers handle faults themselves, and find the call of a dead object before we do
        }
        if (b->end == ending::returns || b->end == ending::throws) {
            expect_planted_here(*b);
        } else {
            expect_planted_in_a_child(*b);
        }
    }
}

std::vector<const catalogue::line*> lines_with_bugs() {
    std::vector<const catalogue::line*> with;
    for (const catalogue::line& l : catalogue::lines()) {
        if (!catalogue::bugs_of(l.id).empty()) {
            with.push_back(&l);
        }
    }
    return with;
}

std::string name_of(const testing::TestParamInfo<const catalogue::line*>& line) {
    const std::string id = line.param->id;
    return "line_" + (id.size() == 1 && id[0] <= '9' ? "0" + id : id);
}

INSTANTIATE_TEST_SUITE_P(Catalogue, CatalogueLine, testing::ValuesIn(lines_with_bugs()), name_of);

}  // namespace
