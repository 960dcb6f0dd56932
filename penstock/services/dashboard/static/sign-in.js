// Exchanges the token for a cookie, then goes to the page.
const form = document.getElementById("form");
const token = document.getElementById("token");
const wrong = document.getElementById("wrong");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  wrong.hidden = true;
  const answer = await fetch("/api/sign-in", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ token: token.value }),
  }).catch(() => null);
  if (answer?.ok) {
    location.replace("/");
    return;
  }
  wrong.textContent = answer ? (await answer.json()).detail : "The page's server does not answer; is it still running?";
  wrong.hidden = false;
  token.select();
});
