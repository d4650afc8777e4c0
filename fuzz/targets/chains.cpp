// Chains of up to five resources over a watched upstream or over pages. What the top one promises, it promises on top
// of all others; and those have nothing to report.

#include "support/checked.hpp"
#include "support/policies.hpp"
#include "support/target.hpp"

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/failing_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/logging_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <memory>

namespace {

using namespace fuzz;

report_sink sink;

/// Policies that any thread may use.
template <class F>
void with_shared_policy(std::size_t choice, F&& f) {
    switch (choice % 8) {
        case 1: return f.template operator()<immediate>();
        case 2: return f.template operator()<quarantined>();
        case 3: return f.template operator()<kept>();
        case 4: return f.template operator()<pmr_debug::fast_policy>();
        case 5: return f.template operator()<pmr_debug::default_policy>();
        case 6: return f.template operator()<pmr_debug::release_policy>();
        default: return f.template operator()<untraced>();
    }
}

struct layer {
    std::unique_ptr<subject> what;
    knowledge known;
};

void swallow(std::string_view, void*) noexcept {}

layer make_layer(std::size_t kind, std::size_t choice, std::pmr::memory_resource* below, bool over_pages,
                 std::string& words_of_it) {
    layer made;
    made.known.direct = false;
    const auto add = [&](family f, const policy& p, const char* name) {
        made.known.is = f;
        made.known.rules = p;
        made.known.own_pages = over_pages;
        words_of_it = std::string(name) + " " + words(p) + "\n     over " + words_of_it;
    };
    with_shared_policy(choice, [&]<policy P>() {
        switch (kind) {
            case 0: {
                add(family::tracking, P, "tracking_resource");
                made.what = std::make_unique<subject_of<pmr_debug::basic_tracking_resource<P>>>(
                    below, pmr_debug::tracking_options{.name = "layer", .handler = &sink});
                break;
            }
            case 1: {
                add(family::canary, P, "canary_resource");
                made.what = std::make_unique<subject_of<pmr_debug::basic_canary_resource<P>>>(
                    below, pmr_debug::canary_options{.name = "layer", .handler = &sink});
                break;
            }
            case 2: {
                add(family::general_purpose, P, "general_purpose_resource");
                made.what = std::make_unique<subject_of<pmr_debug::basic_general_purpose_resource<P>>>(
                    below, pmr_debug::general_purpose_options{.name = "layer", .handler = &sink});
                break;
            }
            case 3: {
                add(family::temp, P, "temp_resource");
                made.what = std::make_unique<subject_of<pmr_debug::temp_resource<0, P>>>(
                    below, pmr_debug::temp_options{.name = "layer", .handler = &sink, .first_chunk_bytes = 512});
                break;
            }
            default: {
                add(family::end_of_page, P, "end_of_page_resource");
                made.known.window = over_pages && P.dead == dead_unit::trap_at_once ? 4096 : 256;
                made.what = std::make_unique<subject_of<pmr_debug::basic_end_of_page_resource<P>>>(
                    below, pmr_debug::end_of_page_options{.name = "layer", .handler = &sink});
                break;
            }
        }
    });
    return made;
}

layer make_thin_layer(std::size_t kind, std::pmr::memory_resource* below, std::string& words_of_it) {
    layer made;
    made.known.direct = false;
    made.known.is = family::pass_through;
    if (kind == 0) {
        words_of_it = "limit_resource\n     over " + words_of_it;
        made.what = std::make_unique<subject_of<pmr_debug::limit_resource>>(
            below, pmr_debug::limit_options{.name = "layer", .handler = &sink});
    } else if (kind == 1) {
        words_of_it = "failing_resource\n     over " + words_of_it;
        made.what = std::make_unique<subject_of<pmr_debug::failing_resource>>(
            below, pmr_debug::failing_options{.name = "layer", .handler = &sink});
    } else {
        words_of_it = "logging_resource\n     over " + words_of_it;
        made.what = std::make_unique<subject_of<pmr_debug::logging_resource>>(
            below, pmr_debug::logging_options{.name = "layer", .handler = &sink, .sink = swallow});
    }
    return made;
}

class chain_session final : public checked_session {
public:
    using checked_session::checked_session;
    /// Blocks that the resource below did not get back: an arena takes all with it.
    [[nodiscard]] std::size_t left() const noexcept { return k_.is == family::temp ? 0 : blocks_.size(); }

    void finish(fuzz_input& in) override {
        if (k_.is != family::temp) {
            checked_session::finish(in);
            return;
        }
        thread_ = 0;
        expect_all_contents();
        if (in.byte() % 2 == 0) {
            free_all();
        }
        compare_statistics();
        compare_counts();
        note("end of the arena");
        drop_other();
        if (reports()) {
            for (const fuzz_block& b : blocks_) {
                expect_live_damage(b, false);
            }
            expect_live(error_kind::live_at_destruction, blocks_.size(), live_bytes_);
        }
        subject_.destroy();
        settle();
        if (!dead_damage_.empty()) {
            fail("missing report: written after free, at the latest at the end");
        }
    }

private:
    verdict expect_request(std::size_t bytes, std::size_t alignment) override {
        const verdict v = checked_session::expect_request(bytes, alignment);
        return k_.is == family::temp && !reports() ? verdict::either : v;
    }
    void compare_statistics() override {
        if (k_.is != family::temp || reports()) {  // an arena that checks nothing counts nothing
            checked_session::compare_statistics();
        }
    }
    void checked() override {
        if (k_.is == family::temp) {
            live_damage_.clear();  // told once, and repaired
        }
    }
    /// An upstream that lies would be reported by the resource right above it: here it only refuses.
    void plan_upstream(fuzz_input& in) override {
        if (stub_ != nullptr) {
            note("the upstream will refuse");
            stub_->plan(in.byte() % 8, fuzz_upstream::answer::refusal);
        }
    }
    void extra(fuzz_input& in) override {
        if (k_.is == family::pass_through) {
            compare_statistics();  // what else there is goes through to those below
        } else {
            checked_session::extra(in);
        }
    }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    fuzz_program program("");
    fuzz_upstream stub(program);
    stub.keep_all(in.byte() % 2 == 0);
    const bool on_pages = in.byte() % 4 == 0;
    std::string names = on_pages ? "page_resource" : "a watched upstream";
    std::vector<layer> layers;
    std::pmr::memory_resource* below = &stub;
    if (on_pages) {
        layer& bottom = layers.emplace_back();
        bottom.what = std::make_unique<subject_of<pmr_debug::page_resource>>(
            pmr_debug::page_resource::options{.name = "pages", .handler = &sink});
        below = &bottom.what->resource();
    }
    bool over_pages = on_pages;
    for (std::size_t n = 2 + in.byte() % 4; n != 0; --n) {
        const std::size_t kind = in.byte() % 16;
        const std::size_t choice = in.byte();
        // Three of each kind, but for arenas; the rest are thin.
        layers.push_back(kind < 12    ? make_layer(kind % 4 == 3 ? 4 : kind % 4, choice, below, over_pages, names)
                         : kind == 15 ? make_layer(3, choice, below, over_pages, names)
                                      : make_thin_layer(choice % 3, below, names));
        below = &layers.back().what->resource();
        over_pages = false;
    }
    program.set_heading(names);
    std::size_t left = 0;
    {
        chain_session session(*layers.back().what, layers.back().known, on_pages ? nullptr : &stub, program, sink,
                              {.largest = std::size_t{1} << 14,
                               .largest_alignment = 4096,
                               .most_blocks = 300,
                               .most_operations = 3000,
                               .second_thread = true});
        session.run(in);
        session.finish(in);
        left = session.left();
    }
    for (layers.pop_back(); !layers.empty(); layers.pop_back()) {
        sink.clear();
        layers.back().what->destroy();
        for (std::size_t i = 0; i < sink.count(); ++i) {
            const bool of_a_leak = sink[i].kind == error_kind::leak || sink[i].kind == error_kind::live_at_destruction;
            if (left == 0 || !of_a_leak) {
                program.fail("false report of a resource below: " + fuzz::words(sink[i]));
            }
        }
    }
    if (left != 0) {
        stub.abandon();
    }
    return 0;
}
