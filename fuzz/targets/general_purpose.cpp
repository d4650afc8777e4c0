// general_purpose_resource over a watched upstream or over pages, under each policy and with odd options.

#include "support/checked.hpp"
#include "support/policies.hpp"
#include "support/target.hpp"

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

namespace {

using namespace fuzz;

report_sink sink;

void run(fuzz_input& in) {
    with_policy(in.byte(), [&]<policy P>() {
        fuzz_program program("");
        fuzz_upstream stub(program);
        std::optional<pmr_debug::page_resource> pages;
        const std::size_t how = in.byte();
        knowledge k{.is = family::general_purpose, .rules = P, .own_pages = how % 4 == 0};
        stub.keep_all(how % 4 == 1);
        if (k.own_pages) {
            pages.emplace();
        }
        pmr_debug::general_purpose_options o{.name = "subject", .handler = &sink};
        const std::size_t odd = in.byte();
        if (odd % 8 == 1) {
            o.limit_bytes = k.limit_bytes = 1000 + in.byte() * std::size_t{200};
        } else if (odd % 8 == 2) {
            o.limit_blocks = k.limit_blocks = 2 + in.byte();
        } else if (odd % 8 == 3) {
            k.tight = true;
            o.quarantine_bytes = in.byte() * std::size_t{1024};
        } else if (odd % 8 == 4) {
            k.tight = true;
            o.retired_record_bytes = in.byte() * std::size_t{64};
        } else if (odd % 8 == 5) {
            k.tight = k.may_run_out = true;
            o.address_space_bytes = (std::size_t{1} << 18) + (std::size_t{in.byte()} << 14);
        }
        std::pmr::memory_resource* const upstream =
            k.own_pages ? static_cast<std::pmr::memory_resource*>(&*pages) : &stub;
        program.set_heading(
            "general_purpose_resource over " + std::string(k.own_pages ? "page_resource" : "a watched upstream") +
            ", " + words(P) + ", limits " + std::to_string(o.limit_bytes) + " and " + std::to_string(o.limit_blocks) +
            ", quarantine " + std::to_string(o.quarantine_bytes) + ", records " +
            std::to_string(o.retired_record_bytes) + ", address space " + std::to_string(o.address_space_bytes));
        using resource = pmr_debug::basic_general_purpose_resource<P>;
        subject_of<resource> s(upstream, o);
        checked_session session(
            s, k, k.own_pages ? nullptr : &stub, program, sink,
            {.largest = std::size_t{1} << 17, .largest_alignment = std::size_t{1} << 14, .second_thread = true});
        session.run(in);
        session.finish(in);
    });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    run(in);
    return 0;
}
