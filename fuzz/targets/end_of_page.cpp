// end_of_page_resource on pages of its own, over page_resource, and over memory that is not its to protect.

#include "support/odd_options.hpp"
#include "support/policies.hpp"
#include "support/target.hpp"

#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/page_resource.hpp>

namespace {

using namespace fuzz;

report_sink sink;

template <policy P>
void run_with(fuzz_input& in) {
    using resource = pmr_debug::basic_end_of_page_resource<P>;
    fuzz_program program("");
    fuzz_upstream stub(program);
    std::optional<pmr_debug::page_resource> pages;
    const std::size_t how = in.byte() % 4;
    knowledge k{.is = family::end_of_page, .rules = P, .own_pages = how != 1};
    pmr_debug::end_of_page_options o{.name = "subject", .handler = &sink};
    const std::size_t where = in.byte();
    k.before_guard = where % 2 == 0;
    o.where = k.before_guard ? pmr_debug::placement::before_guard : pmr_debug::placement::after_guard;
    if (where % 4 == 2) {
        o.canary_bytes = 1 + in.byte();
    }
    const bool at_once = k.own_pages && P.dead == dead_unit::trap_at_once;
    k.window = o.canary_bytes != 0 ? o.canary_bytes : at_once ? 4096 : 256;
    o.address_space_bytes = std::size_t{1} << 34;
    set_odd_options(in, {.quarantine = 4096, .least_addresses = 1 << 24, .addresses = 1 << 20}, o, k);
    program.set_heading("end_of_page_resource over " +
                        std::string(how == 0   ? "page_resource"
                                    : how == 1 ? "a watched upstream"
                                               : "pages of its own") +
                        (k.before_guard ? ", before its guard, " : ", after its guard, ") + words(P) + ", limits " +
                        std::to_string(o.limit_bytes) + " and " + std::to_string(o.limit_blocks) + ", quarantine " +
                        std::to_string(o.quarantine_bytes) + ", records " + std::to_string(o.retired_record_bytes) +
                        ", address space " + std::to_string(o.address_space_bytes) + ", canary bytes " +
                        std::to_string(o.canary_bytes));
    const fuzz_options options{.largest = std::size_t{1} << 15,
                               .largest_alignment = std::size_t{1} << 14,
                               .most_blocks = 300,
                               .most_operations = 3000,
                               .second_thread = true};
    const auto use = [&](subject& s) {
        checked_session session(s, k, k.own_pages ? nullptr : &stub, program, sink, options);
        session.run(in);
        session.finish(in);
    };
    if (how == 0) {
        pages.emplace();
        subject_of<resource> s(&*pages, o);
        use(s);
    } else if (how == 1) {
        subject_of<resource> s(&stub, o);
        use(s);
    } else {
        subject_of<resource> s(o);
        use(s);
    }
}

void run(fuzz_input& in) {
    with_policy(in.byte(), [&]<policy P>() { run_with<P>(in); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    run(in);
    return 0;
}
