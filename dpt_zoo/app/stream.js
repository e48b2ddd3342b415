// The server closes the stream of answers when no request is pending. Gradio's client also closes it, even if it has
// just sent another request, and never receives the answer. This script keeps the stream open while a request is pending.
(() => {
    const fetch = window.fetch;
    let due = 0;

    const ask = async (input, options) => {
        due++;
        const response = await fetch(input, options).catch((error) => {
            due--;
            throw error;
        });
        if (!response.ok) due--;
        return response;
    };

    const receive = async (input, options) => {
        const response = await fetch(input, options);
        if (!response.ok) return response;
        let unfinished = "", isOpen = false;
        const answers = new TransformStream({
            transform(text, controller) {
                const messages = (unfinished + text).split("\n\n");
                unfinished = messages.pop();
                for (const message of messages) {
                    const {msg} = JSON.parse(message.slice("data:".length));
                    if (msg === "process_completed") due--;
                    isOpen = msg === "close_stream" && due > 0;
                    if (!isOpen) controller.enqueue(`${message}\n\n`);
                }
            },
            async flush(controller) {
                if (!isOpen) return;
                const next = await receive(input, options);
                if (!next.ok) throw new Error(next.statusText);
                const reader = next.body.pipeThrough(new TextDecoderStream()).getReader();
                for (let part = await reader.read(); !part.done; part = await reader.read()) controller.enqueue(part.value);
            },
        });
        const body = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(answers);
        return new Response(body.pipeThrough(new TextEncoderStream()), response);
    };

    window.fetch = (input, options) => {
        const {pathname} = new URL(input.url ?? input, document.baseURI);
        const send = {"/gradio_api/queue/join": ask, "/gradio_api/queue/data": receive}[pathname] ?? fetch;
        return send(input, options);
    };
})();
